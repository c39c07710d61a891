"""What a network loses or gains when it is quantized, pruned or defended.

One chapter per question. A chapter imports only from chapters above it.

    core             what all chapters share: files, device, layers, projections, figures
    data             which images?
    models           which network?
    attacks          how is an image changed to fool a network?
    defenses         what makes a network harder to fool?
    certification    what can be proved of a network?
    measures         how accurate, how large, how fast?
    training         how is a network trained, and for what?
    quantization     what does a network lose in a number format?
    prediction       what will that cost, before it is done?
    robustness       can a figure of robustness be believed?
    generator        and without data?
    pruning          which weights does a network need?
    workbook         runs of notebooks: parameters, results, reports; no method imports it

    images = data.load("digits")
    network = models.build("SmallCNN", images.spec)
    training.fit(network, images, training.objective("natural"), training.recipe("quick"))
    small = quantization.ptq(network, "INT_4", images.train.images[:1024])
    print(measures.accuracy(network, *images.test), measures.accuracy(small, *images.test))
"""
