# make         the program, build/lineal           make demo [DATA=path]   train, measure, plot and sample: docs in README.md
# make test    build and check everything          make setup              install what is missing; the others call it
JOBS ?= $(shell nproc)
BUILD := build

.PHONY: all setup configure test layers format demo clean

all: configure
	@cmake --build $(BUILD) -j $(JOBS) --target lineal_program

setup:
	@tools/setup.sh

configure: setup
	@cmake --preset release --log-level=WARNING >/dev/null

test: configure layers format
	@cmake --build $(BUILD) -j $(JOBS)
	@cd $(BUILD) && ctest -j 2 --output-on-failure

layers: setup
	@python3 tools/check_layers.py

format: setup
	@tools/check_format.sh

demo: all
	@runs/demo.sh "$(DATA)"

clean:
	rm -rf $(BUILD)
