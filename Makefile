# Two commands: `make run` builds, boots and publishes recipes/debian.yaml; `make test` passes the tests.
PYTHON ?= python3
VENV := .venv

run: $(VENV)/ready
	$(VENV)/bin/kbuild run recipes/debian.yaml

test: $(VENV)/ready-test
	$(VENV)/bin/python -m pytest -n auto --dist loadfile --maxfail 20

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --editable .
	touch $@

$(VENV)/ready-test: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --editable '.[test,lint,bench]'
	touch $@ $(VENV)/ready

bench: $(VENV)/ready-test
	$(VENV)/bin/python -m benchmarks all

generate: $(VENV)/ready
	$(VENV)/bin/kbuild schema > schema/recipe.schema.json
	$(VENV)/bin/kbuild schema --of workspace > schema/workspace.schema.json
	$(VENV)/bin/kbuild schema --of reference > docs/recipe-reference.md

.PHONY: run test bench generate
