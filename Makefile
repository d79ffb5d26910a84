# make demo | test | torture | clean. Each does its own set-up, in .venv, and can be repeated.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python

.PHONY: demo test torture clean

demo: $(VENV)/run
	$(RUN) train.py --dataset demo --filters 32 --batch-size 16 --epochs 2 --seed 1 --sample-interval 200 --save-interval 200
	@echo "Later commands of the README: first type  source $(VENV)/bin/activate"
	@echo "Pictures (gray | original | colorized): $$(ls -t checkpoints/demo/samples/*.png | head -n 1)"

test: $(VENV)/dev
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(RUN) -m pytest -n 3 --dist loadfile

torture: $(VENV)/dev
	$(RUN) -m pytest -m torture -s

clean:
	rm -rf $(VENV)

$(VENV)/run: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
	    { echo "TensorFlow needs Python 3.10 to 3.13; $(PYTHON) is $$($(PYTHON) --version). Try make PYTHON=python3.12" >&2; exit 2; }
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --disable-pip-version-check -r requirements.txt \
	    $$(nvidia-smi -L >/dev/null 2>&1 && echo 'tensorflow[and-cuda]')
	touch $@

$(VENV)/dev: requirements-dev.txt $(VENV)/run
	$(RUN) -m pip install --disable-pip-version-check -r requirements-dev.txt
	touch $@
