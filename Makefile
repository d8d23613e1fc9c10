# make r1    set up, then the whole R1 recipe on the embedded default (six to fifteen minutes on two CPU cores)
# make test  set up, then the test suite
PYTHON ?= python3
BIN = .venv/bin

r1: .venv/ready
	$(BIN)/python -m r1mini

test: .venv/ready-dev
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder tests

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -r requirements.txt
	touch $@

.venv/ready-dev: .venv/ready tests/requirements.txt
	$(BIN)/python -m pip install -q -r tests/requirements.txt
	touch $@

.PHONY: r1 test
