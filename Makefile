# make workbook   run every notebook of a preset and report        PRESET=digits CORES=2
#                 (the lock of a Snakemake that was killed is removed first)
# make test       every test, notebooks included
# make lab        JupyterLab on the notebooks
# make bench      side by side with other libraries
PYTHON ?= python3
PRESET ?= digits
CORES ?= 2
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PEERS := $(wildcard $(VENV)/peers)
export PYTHONUNBUFFERED := 1

.PHONY: venv workbook test lab bench format clean

venv: $(READY)

$(READY): pyproject.toml constraints.txt
	@echo "installing into $(VENV), some minutes; pip writes to $(VENV)/install.log"
	@$(PYTHON) -m venv $(VENV)
	@{ $(BIN)/python -m pip install --upgrade pip && \
	$(BIN)/python -m pip install --no-compile -c constraints.txt -e '.[workflow,figures,onnx,test]'; } > $(VENV)/install.log 2>&1 || \
	{ tail -20 $(VENV)/install.log; exit 1; }
	@touch $(READY)

workbook: $(READY)
	@$(BIN)/python -m rqlib.core.snakemake_lock
	@$(BIN)/python -m rqlib.workbook.graph --cores $(CORES) --rerun-incomplete --config preset=$(PRESET); \
	code=$$?; $(BIN)/python -m rqlib.workbook.overview && exit $$code

test: $(READY)
	$(if $(PEERS),PYTHONPATH=$(PEERS) )$(BIN)/python -m pytest --numprocesses $(CORES) --dist worksteal

lab: $(READY)
	$(BIN)/jupyter lab --ip=127.0.0.1 notebooks

bench: $(READY)
	$(BIN)/python -m pip install --quiet --no-deps --target $(VENV)/peers -r benchmarks/peers.txt
	PYTHONPATH=$(VENV)/peers $(BIN)/python -m benchmarks

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/nbstripout --keep-count --keep-id notebooks/*.ipynb

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .snakemake
