# A fresh machine needs two commands: `make demo` and `make test`. Each creates .venv when it is missing.
.PHONY: install demo test lint bench bench-align clean
BIN := .venv/bin

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt tools/install.sh
	@tools/install.sh

demo: install
	@$(BIN)/worldline demo -o demo

test: install
	@$(BIN)/pytest -m "not slow and not gpu" $(ARGS)

lint: install
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: install
	@$(BIN)/worldline bench systems --suite all

bench-align: install
	@$(BIN)/python benchmarks/align.py

clean:
	@rm -rf .venv demo build
