# Every command a developer needs; CMakePresets.json holds the builds. `make` alone lists the targets.
.DEFAULT_GOAL := help
.PHONY: help setup build model serve test test-stores asan tsan lint fmt golden record models bench memory-bench examples clean
MAKEFLAGS += --no-print-directory
SHELL := bash
export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH)

HOST ?= 127.0.0.1
PORT ?= 8000
MODEL ?=
ARGS ?=

# Configures a preset once (CMake reruns itself when its files change), then builds. $(1) preset, $(2) what to build.
folder = build$(if $(filter-out release,$(1)),-$(1))
cmake = @test -f $(call folder,$(1))/build.ninja || cmake --preset $(1); cmake --build --preset $(1) $(2)
golden_venv = @. tools/versions.sh && tools/venv.sh .venv-golden mlx-lm==$$MLX_LM_VERSION mlx==$$MLX_VERSION $$(uname | sed -n s/Linux/mlx-cpu==$$MLX_VERSION/p)
store_servers = @servers=$$(tools/stores.sh) || exit 1; eval "$$servers"
cpp_files = $$(git ls-files '*.h' '*.cpp')

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' Makefile
	@echo '  Variables of serve: HOST=127.0.0.1 PORT=8000 MODEL=<file or folder> ARGS="<more flags>"'

setup: ## Install what is missing: system packages, Rust, MLX in .venv
	@tools/setup.sh

build: setup ## Build build/bin/mlx_parallm_serve and build/bin/mlx_parallm
	$(call cmake,release,--target mlx_parallm_serve mlx_parallm)

model: setup ## Fetch the default model if needed; the last line is its path
	@tools/model.sh

serve: build ## Run the server on the default model, or on MODEL=
	@model='$(MODEL)'; [ -n "$$model" ] || model=$$(tools/model.sh); exec tools/serve.sh "$$model" $(HOST) $(PORT) $(ARGS)

test: golden ## Build and pass every test: unit, tensor, stores, tree, then real clients over HTTP
	$(call cmake,release)
	@echo 'stores: fetching their servers'; tools/stores.sh >build/stores.env || { : >build/stores.env; \
	  echo 'stores: WITHOUT Redis, PostgreSQL and Neo4j, which could not be fetched: `make test-stores` fails for it' >&2; }
	. build/stores.env; PARALLM_TEST_MODEL="$$(tools/model.sh)" PARALLM_TEST_GEMMA3="$$(tools/model.sh gemma3)" ctest --preset release
	@tools/venv.sh .venv-test -r tests/requirements.txt
	. build/stores.env; PARALLM_SERVER=build/bin/mlx_parallm_serve PARALLM_TEST_MODEL="$$(tools/model.sh)" .venv-test/bin/pytest tests/blackbox

test-stores: setup ## The tests of the memory stores alone, against real servers of each kind
	$(call cmake,release,--target store_tests)
	$(store_servers); build/bin/store_tests $(ARGS)

asan: golden ## Unit and tensor tests under AddressSanitizer and UBSan (build-asan)
	$(call cmake,asan)
	ctest --preset asan

tsan: setup ## Unit and store tests under ThreadSanitizer (build-tsan)
	$(call cmake,tsan,--target unit_tests store_tests)
	ctest --preset tsan

lint: setup ## clang-tidy over the whole build (build-tidy), and the tree's own rules
	@. tools/versions.sh && tools/venv.sh .venv-lint clang-tidy==$$CLANG_TIDY_VERSION clang-format==$$CLANG_FORMAT_VERSION
	python3 tools/check_tree.py
	.venv-lint/bin/clang-format --dry-run --Werror $(cpp_files)
	$(call cmake,tidy)

fmt: setup ## Format every C++ file in place
	@. tools/versions.sh && tools/venv.sh .venv-lint clang-tidy==$$CLANG_TIDY_VERSION clang-format==$$CLANG_FORMAT_VERSION
	.venv-lint/bin/clang-format -i $(cpp_files)

golden: setup ## Make the tiny models of tests/golden/models and mlx-lm's logits for them, in build/golden
	$(golden_venv)
	@.venv-golden/bin/python tools/golden.py build/golden

record: setup ## Record what mlx-lm says on the real model, tests/golden (many minutes; can be stopped and goes on)
	$(golden_venv)
	.venv-golden/bin/python tools/golden_text.py "$$(tools/model.sh)" $(ARGS)

models: golden ## Measure every architecture against mlx-lm and renew the README's table
	$(call cmake,release,--target tensor_tests)
	build/bin/tensor_tests --no-skip -tc="table of models"
	python3 tools/models_table.py

bench: build ## Measure this server beside mlx_lm.server and llama-server on the same weights
	@tools/venv.sh .venv-bench -r bench/requirements.txt
	.venv-bench/bin/python bench/serve.py --model "$$(tools/model.sh)" $(ARGS)

memory-bench: build ## Measure what memories are worth with the default model, beside the same text in the prompt
	@tools/venv.sh .venv-bench -r bench/requirements.txt
	build/bin/mlx_parallm memory-bench --model-path "$$(tools/model.sh)" --dtype float32 --speculative none --compare-keeping \
	  --distractors 0,100,400 --quiet --result bench/results/memory.md $(ARGS)
	.venv-bench/bin/python bench/plot_memory.py bench/results/memory.md docs/memory.svg

examples: setup ## Build the example programs of the library
	$(call cmake,release,--target examples)

clean: ## Remove the builds; what set-up installed stays
	rm -rf build build-* rust/text_ffi/target
