"""What a network loses or gains when it is quantized, pruned or defended.

Who may import whom: strictly downward.

| level | file | one idea |
|---|---|---|
| 0 | `vocabulary` | shape letters, what pixels are, `ImageSpec`, the aliases `Attack`, `Objective`, `Projection` |
| 0 | `files` | files that are whole or absent: atomic writes, checked tensors, locks |
| 0 | `runtime` | device, seeds, precision policy, `evaluating(model)`, progress bars |
| 0 | `layers` | walk weighted layers, fold BatchNorm, attach input transforms |
| 0 | `vision` | torchvision, also beside a CPU-only torch |
| 0 | `parameters` | names and types of a notebook's parameters |
| 0 | `provenance` | commit, fingerprint of the code, versions of the libraries |
| 0 | `overfitting` | flags of robust training: accuracy that rose, and then fell |
| 0 | `rounding` | to the nearest value of a format, on the bits of a float |
| 1 | `data` | named datasets as uint8 tensors; batches; splits |
| 1 | `models` | `MODELS`, `build`; one file a family |
| 1 | `report` | executed notebooks as one offline HTML |
| 1 | `ledger` | rows that survive a crash |
| 1 | `projections` | norm balls and other sets: the nearest point, the steepest direction |
| 1 | `attack_losses` | what an attack climbs: cross-entropy, margin, DLR |
| 1 | `ascent` | an attack's machinery: no trace, scores, the strongest of each image |
| 1 | `straight_through` | gradients straight through rounding and clamps |
| 1 | `formats` | `Format(bits, exponent_bits)`: INT, POT, FLOAT; codebooks |
| 1 | `quantization_points` | where a network's signals are quantized |
| 1 | `int8` | convolutions and products of 8-bit integers, exactly |
| 1 | `channels` | which channels stay or go together, and their removal |
| 1 | `curves` | families of nondecreasing curves |
| 1 | `conformal` | intervals as wide as the errors on groups left out |
| 2 | `penultimate` | a network's last layer, and the features that flow into it |
| 2 | `batchnorm_statistics` | how far a batch is from the statistics a network has kept |
| 2 | `checkpoints` | plain weights with name and `ImageSpec`, rebuilt without executing anything |
| 2 | `cost` | parameters, MACs and stored bits per layer |
| 2 | `run` | a checked batch run of a notebook |
| 2 | `attacks` | FGSM, PGD, WRM, noise |
| 2 | `autoattack` | Square and AutoAttack, where pyautoattack is installed |
| 2 | `parametrizations` | `Quantized`, `Masked`, `Scored`, `bake` |
| 2 | `observers` | ranges of signals, and the scale that a format takes from them |
| 2 | `requantize` | from sums of integers to the next layer's codes |
| 3 | `objectives` | what training minimizes |
| 3 | `evaluate` | accuracies, clean and under attack, streamed |
| 3 | `recipes` | learning-rate schedules and named recipes |
| 3 | `compressed` | a pruned network as a file as small as it is |
| 3 | `diagnostics` | twenty checks that an attack was strong enough |
| 3 | `similarity` | how far quantized weights are from the float ones |
| 3 | `calibration` | fold, observe once, freeze |
| 3 | `layer_formats` | a layer's weight and bias on a format |
| 3 | `integer` | the integer form of a quantized network |
| 3 | `masks` | which weights stay: single ones, columns, filters, N:M |
| 3 | `mixed_precision` | a budget of bits divided among layers |
| 3 | `generator_network` | mixtures of labels and noise become images |
| 3 | `feature_map` | two axes of features; how much of the space is covered |
| 4 | `train` | `fit`, the only supervised loop |
| 4 | `quantize` | post-training quantization and the sweep over formats |
| 4 | `predictors` | what a loss is predicted from: the table of features |
| 4 | `generator_training` | a generator learns from a network alone |
| 4 | `pseudo_quality` | how good generated images are |
| 5 | `robustness` | accuracy against epsilon, of quantized networks, on a plane |
| 5 | `prune` | LWM, HYDRA, ADMM, multi-step: prune and fine-tune for an objective |
| 5 | `results` | run folders, rows, checkpoints |
| 5 | `fits` | curves through losses, judged on groups left out |
| 5 | `data_free` | similarities of a network of which there is no image |
| 5 | `adjustment` | generated images as hard as real ones |
| 6 | `prediction` | a network's losses forecast, with an interval; the format to take |
| 6 | `plots` | the house template; tables to figures |
| 6 | `summary` | where everything lies, with the key figures |
| 6 | `generator` | build, fit, adjust, sample |
| 6 | `quantized_robustness` | what quantized networks keep, on generated and on real images |
| 7 | `leaderboard` | every predictor, judged on networks left out |
| 7 | `figures_prediction` | figures of prediction |
| 7 | `figures_prune` | figures of pruning |
| 7 | `figures_quantization` | figures of quantization |
| 7 | `figures_generator` | figures of generated images |
| 7 | `figures_robustness` | figures of attacks |
| 7 | `widgets` | choose, redraw |
| 8 | `widgets_fit` | choose data, predictor and family; see R2 |
| 8 | `widgets_attack` | attack an image on the spot |
| 8 | `widgets_prune` | which weights of any layer each method keeps |
| 8 | `widgets_quantization` | weights of any layer in any format |
| 8 | `migration` | quantize without data, and say beforehand what it costs |
| 8 | `widgets_generator` | superpose classes; click a point, see its image |
"""
