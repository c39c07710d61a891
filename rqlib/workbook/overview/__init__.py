"""One page for all finished runs, ``outputs/index.html``: what each treatment of each network costs or gains.

`networks` finds which network each run worked on, `measurements` turns the tables of every notebook into one by its
`adapters`, `treatments` makes one row per treatment, `sentences` says it in words, `chart` draws it, `page` writes it.
"""
