# Thin: CMake builds, ctest judges, scripts in ops/ do the rest.
.PHONY: run build test lint format bench deps deps-build clean
.NOTPARALLEL: # two installers would meet at the package lock

run: build
	@ops/run.sh

build: deps-build
	@cmake --preset release >/dev/null
	@cmake --build build

test: deps build
	@ops/test.sh

lint: deps
	@ops/lint.sh

format:
	@ops/lint.sh --fix

bench: build
	@build/godwitd bench --model assets/models/godwit-tiny

deps:
	@ops/install-deps.sh

deps-build:
	@ops/install-deps.sh --build-only

clean:
	rm -rf build build-asan build-tsan
