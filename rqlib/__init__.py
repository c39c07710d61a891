"""What a network loses or gains when it is quantized, pruned or defended.

Who may import whom: strictly downward.

| level | file | one idea |
|---|---|---|
| 0 | `vocabulary` | shape letters, `ImageSpec`, the aliases `Attack`, `Objective`, `Projection` |
| 0 | `files` | files that are whole or absent: atomic writes, checked tensors, locks |
| 0 | `runtime` | device, seeds, precision policy, `evaluating(model)`, progress bars |
| 0 | `layers` | walk weighted layers, fold BatchNorm, attach input transforms |
| 0 | `vision` | torchvision, also beside a CPU-only torch |
| 0 | `parameters` | names and types of a notebook's parameters |
| 0 | `provenance` | commit, fingerprint of the code, versions of the libraries |
| 1 | `data` | named datasets as uint8 tensors; batches; splits |
| 1 | `models` | `MODELS`, `build`; one file a family |
| 1 | `report` | executed notebooks as one offline HTML |
| 1 | `projections` | norm balls and other sets: the nearest point, the steepest direction |
| 1 | `attack_losses` | what an attack climbs: cross-entropy, margin, DLR |
| 1 | `ascent` | an attack's machinery: no trace, scores, the strongest of each image |
| 1 | `straight_through` | gradients straight through rounding and clamps |
| 2 | `checkpoints` | plain weights with name and `ImageSpec`, rebuilt without executing anything |
| 2 | `cost` | parameters, MACs and stored bits per layer |
| 2 | `run` | a checked batch run of a notebook |
| 2 | `attacks` | FGSM, PGD, WRM, noise |
| 2 | `autoattack` | Square and AutoAttack, where pyautoattack is installed |
| 3 | `objectives` | what training minimizes |
| 3 | `evaluate` | accuracies, clean and under attack, streamed |
| 3 | `recipes` | learning-rate schedules and named recipes |
| 3 | `diagnostics` | twenty checks that an attack was strong enough |
| 4 | `train` | `fit`, the only supervised loop |
| 5 | `results` | run folders, rows, checkpoints |
| 6 | `plots` | the house template; tables to figures |
| 6 | `summary` | where everything lies, with the key figures |
| 7 | `widgets` | choose, redraw |
"""
