"""Finished runs with made-up tables, written without a notebook."""

import json
from pathlib import Path

from pandas import DataFrame

IMAGES = 200
MACHINE = {"processor": "a processor", "cores": 2, "gpu": None}
NATURAL = "01_train/SmallCNN-natural"
ADVERSARIAL = "01_train/SmallCNN-adversarial"


def write(
    outputs: Path,
    folder: str,
    parameters: dict,
    rows: list[dict],
    *,
    report=True,
    status="done",
    summary=None,
    **tables,
) -> None:
    """A run in a folder ``NOTEBOOK/NAME`` below ``outputs``, with its rows and further tables (lists of rows)."""
    path = outputs / folder
    path.mkdir(parents=True)
    record = {"notebook": folder.split("/")[0], "parameters": parameters, "status": status, "machine": MACHINE}
    record |= {"started": "2026-01-01", "seconds": 12.3, "summary": summary or {}, "rows": len(rows)}
    record |= {"policy": {"device": "cpu", "precision": "float32"}, "versions": {"torch": "2.13.0"}}
    record["files"] = []  # no table is promised, so that any may be missing
    (path / "run.json").write_text(json.dumps(record))
    for name, table in ({"rows": rows} | tables).items():
        DataFrame(table).to_parquet(path / f"{name}.parquet")
    if report:
        (path / "report.html").write_text("report")


def train(outputs: Path, folder: str = NATURAL, *, model="SmallCNN", images="digits", accuracy=0.98, **values) -> None:
    """A run of 01_train: 1,000 weights in float32 and 10 biases."""
    parameters = {"dataset": images, "model": model, "width": 1.0, "recipe": "quick", "objective": "natural", "seed": 0}
    row = {
        "images": images,
        "test_images": IMAGES,
        "test_accuracy": accuracy,
        "bits": 32 * 1010,
        "macs": 5000,
        "seed": 0,
    }
    write(outputs, folder, parameters | values, [row | {"model": model, "width": 1.0}])


def quantize(outputs: Path, of: str = NATURAL, *, name="SmallCNN", **accuracies: float) -> None:
    """A run of 02_quantize in the formats INT_N that are named, with a mix and a repair."""
    accuracies = accuracies or {"INT_8": 0.98, "INT_4": 0.95, "INT_2": 0.1}
    about = {"images": "digits", "model": "SmallCNN", "width": 1.0, "float_accuracy": 0.98, "duplicate_of": None}
    rows = []
    for form, accuracy in accuracies.items():
        bits = int(form.removeprefix("INT_"))
        rows.append(about | {"format": form, "accuracy": accuracy, "bits": bits, "coded_bits": 1000 * bits})
    rows.append(rows[0] | {"format": "TWIN", "duplicate_of": rows[0]["format"]})
    repaired = [{"repairs": "none", "accuracy": 0.95}, {"repairs": "bias_correction", "accuracy": 0.97}]
    values = {"network": f"elsewhere/{of}/checkpoint.pt", "test_images": 10000, "budget_bits": 4.0}
    values |= {"repair_format": "INT_4", "granularity": "tensor"}
    tables = {"repaired": repaired, "summary": {"mix_accuracy": 0.97}}
    write(outputs, f"02_quantize/{name}", values, rows, **tables)


def predict(outputs: Path, run: str = "02_quantize/SmallCNN") -> None:
    """A run of 03_fit, which left the network of another run out."""
    row = {"run": run, "format": "INT_8", "float_accuracy": 0.98, "predicted": 0.0, "lower": -0.1, "upper": 0.1}
    write(outputs, "03_fit/all", {}, [{"best": 1}], left_out=[row, row | {"format": "INT_4", "predicted": 0.05}])


def generate(outputs: Path, of: str = NATURAL) -> None:
    """A run of 04_generator: INT_8 chosen without data."""
    about = {"images": "digits", "model": "SmallCNN", "width": 1.0, "duplicate_of": None}
    under = {"test_clean": 0.98, "test_fgsm": 0.4, "test_pgd": 0.3}
    rows = [about | under | {"format": "FP32"}]
    rows.append(
        about | under | {"format": "INT_8", "bits": 8, "coded_bits": 8000, "accuracy": 0.975, "float_accuracy": 0.98}
    )
    forecast = [{"format": "INT_8", "predicted": 0.01, "lower": None, "upper": None}]
    values = {"network": f"{of}/checkpoint.pt", "epsilon_255": 8.0, "pseudo_images": 500, "robust_images": 50}
    write(outputs, "04_generator/SmallCNN", values, rows, forecast=forecast)


def attack(outputs: Path, of: str = NATURAL, *, name="SmallCNN", robust=0.1, certified=0.02) -> None:
    """A run of 05_robust at 16/255: the float network, INT_8, and what is proved."""
    about = {"images": "digits", "model": "SmallCNN", "width": 1.0, "objective": "natural"}
    rows = [about | {"attack": "none", "accuracy": 0.98, "low": 0.95, "high": 0.99}]
    rows.append(about | {"attack": "all of these", "accuracy": robust, "low": robust - 0.04, "high": robust + 0.04})
    quantized = [{"format": "INT_8", "clean": 0.98, "minimum": robust}]
    proved = [{"epsilon_255": 16.0, "clean": 1.0, "PGD": 0.1, "CROWN-IBP": certified, "IBP": 0.0}]
    values = {"network": f"{of}/checkpoint.pt", "epsilon_255": 16.0, "norm": "Linf", "test_images": 200}
    values |= {"quantized_images": 50, "certified_images": 50}
    write(outputs, f"05_robust/{name}", values, rows, quantized=quantized, proved=proved)


def prune(outputs: Path, of: str = NATURAL) -> None:
    """A run of 06_prune: HYDRA to a tenth, also in eight bits; half of the channels; ATMC; certified; by noise."""
    about = {"images": "digits", "model": "SmallCNN", "width": 1.0, "pretrained_for": "natural"}
    dense = about | {"method": "dense", "kept": 1.0, "clean_accuracy": 0.98, "robust_accuracy": 0.1}
    dense |= {"coded_bits": 32000, "index_bits": 0, "other_bits": 320}
    hydra = dense | {"method": "hydra", "kept": 0.1, "clean_accuracy": 0.975, "robust_accuracy": 0.6}
    hydra |= {"coded_bits": 3200, "index_bits": 500}
    eight = about | {"method": "hydra INT_8", "kept": 0.1, "clean_accuracy": 0.97, "robust_accuracy": 0.58}
    joint = hydra | {"method": "ATMC-8", "kept": 0.08, "compression": 16.0, "file_bytes": 260, "clean_accuracy": 0.7}
    certified = [{"method": "hydra", "kept": 0.1, "format": form, "epsilon_255": radius, "clean": 0.98, "PGD": 0.6,
                  "IBP": 0.3, "CROWN": 0.5} for form in ("float", "INT_8") for radius in (8.0, 16.0)]  # fmt: skip
    by_noise = [{"network": "hydra 0.1", "label": 1, "predicted": label, "radius_l2": 0.3} for label in (1, 1, 2, 1)]
    filters = DataFrame({"dense": [5000, 9.0, 0.98, 32320], "half removed": [1500, 4.0, 0.6, 8080]},
                        index=["macs", "milliseconds", "clean_accuracy", "bits"])  # fmt: skip
    values = {
        "network": f"{of}/checkpoint.pt",
        "epsilon_255": 16.0,
        "test_images": 200,
        "certified_images": 50,
        "seed": 0,
    }
    values |= {"finetune_objective": "adversarial", "smoothing_radius": 0.25, "era_steps": 20, "era_restarts": 2}
    sizes = [{"method": "hydra", "kept": 0.1, "file_bytes": 600}]
    tables = {"sizes": sizes, "certified": certified, "by_noise": by_noise, "filters": filters}
    write(outputs, "06_prune/SmallCNN", values, [dense, hydra, eight, joint], **tables)


def everything(outputs: Path) -> None:
    """A natural network with every kind of treatment, and an adversarial one of the same kind."""
    train(outputs)
    train(outputs, ADVERSARIAL, accuracy=0.96, objective="adversarial", epsilon_255=16.0)
    for make in (quantize, predict, generate, attack, prune):
        make(outputs)
    attack(outputs, ADVERSARIAL, name="adversarial", robust=0.7, certified=0.2)
