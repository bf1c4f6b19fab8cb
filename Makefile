# make run: the main job. make test: the tests. Both make .venv first. make help: the rest.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: run test thorough lowest test-seconds rows lint docs torture fuzz bench metrics-speed gpu gpu-count tune leaderboard leaderboard-quick leaderboard-pictoscenes attacks oracles variance unseen families world-quality clean help
.DEFAULT_GOAL := run

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -e '.[test,lint,plot]'
	touch $@

run: .venv/installed  ## unlearn nudity from the embedded model and print the main values
	$(BIN)/unlearnbench run algo=redirect concept=nudity

test: .venv/installed  ## the tests, on every core, in four to seven minutes on two; `python -m pytest tests/test_x.py` runs some
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not thorough"

thorough: .venv/installed  ## the other tests: every algorithm, family and attack, cold processes, the judges of extras
	$(BIN)/pip install --quiet -e '.[nudenet,timm]'
	$(BIN)/python -m pytest -n auto --dist worksteal -m thorough

test-seconds: .venv/installed  ## all tests, and how long they took, in docs/performance.md
	$(BIN)/python scripts/suite_seconds.py

rows: .venv/installed  ## is a row of the leaderboards or a trial of the tuning stale? minutes
	$(BIN)/python scripts/check_rows.py

FAST := tests/algos tests/cli tests/config tests/console tests/data tests/metrics tests/models tests/results tests/storage tests/test_sampling.py
lowest: .venv/installed  ## the smoke run and the fast tests with the lowest versions that pyproject names, in .venv-lowest
	$(BIN)/pip install --quiet uv
	$(BIN)/uv venv --quiet --clear --python $(PYTHON) .venv-lowest
	$(BIN)/uv pip install --quiet --python .venv-lowest --resolution lowest-direct -e '.[test]'
	.venv-lowest/bin/unlearnbench run experiment=smoke hydra.run.dir=outputs/lowest/$$(date +%s) cache=outputs/lowest/cache
	.venv-lowest/bin/python -m pytest -n auto $(FAST)

lint: .venv/installed  ## ruff, mypy, and the documentation strictly
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs: .venv/installed  ## the documentation site, in outputs/site; writes its generated pages anew
	$(BIN)/python scripts/docs_pages.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

torture: .venv/installed  ## kill 100 runs at random moments, take them up again, compare: half an hour; KILLS=20 for fewer
	$(BIN)/python scripts/kill_and_resume.py --kills $(or $(KILLS),100)

fuzz: .venv/installed  ## 300 strange command lines
	$(BIN)/python -m pytest tests/cli/test_fuzz.py --hypothesis-profile fuzz

bench: .venv/installed  ## speed, as ratios
	$(BIN)/pip install --quiet -e '.[bench]'
	$(BIN)/python scripts/speed.py --write docs/performance.md

metrics-speed: .venv/installed  ## time and memory of the metrics of 3,000 and 30,000 images, in docs/performance.md: minutes
	$(BIN)/python scripts/metrics_speed.py --write docs/performance.md

families: .venv/installed  ## every algorithm on a tiny pipeline of every family, from the command line
	$(BIN)/python scripts/families.py

gpu: .venv/installed  ## a GPU: agreement with the CPU, memory and speed at full size, every algorithm on every family
	$(BIN)/pip install --quiet -e '.[adam8bit]'
	$(BIN)/python scripts/gpu.py
	$(BIN)/python scripts/families.py --device cuda --jobs 4 --write docs/families-runs-gpu.md

gpu-count: .venv/installed  ## kernels and bytes of a sampling call, ours and diffusers', on fake CUDA tensors: no GPU, a minute
	$(BIN)/python scripts/gpu_count.py --write docs/gpu.md

world-quality: .venv/installed  ## the embedded models and their evaluators on held-out captions
	$(BIN)/unlearnbench world quality --write docs/world-quality.md
	$(BIN)/unlearnbench world quality --world pictoscenes --write docs/pictoscenes-quality.md --sheet docs/pictoscenes.png

tune: .venv/installed  ## the same trials for every algorithm: hours, JOBS=16 at a time on a GPU; WORLD=pictoscenes; ALGOS=esd_x,uce; writes conf/tuned/
	$(BIN)/python scripts/tune.py --world $(or $(WORLD),pictoworld) --jobs $(or $(JOBS),1) $(if $(ALGOS),--algos $(ALGOS))

oracles: .venv/installed  ## the embedded models without a concept, for algo=oracle: minutes on a GPU, hours each on two cores; goes on where it stopped
	for concept in nudity church parachute van_gogh; do $(BIN)/unlearnbench world train --without $$concept || exit 1; done
	$(BIN)/unlearnbench world train --world pictoscenes --without church+nudity+parachute+van_gogh

leaderboard: .venv/installed  ## all algorithms, concepts and three seeds: hours, JOBS=2 at a time, DEPTH=1 with probes; goes on where it stopped
	$(BIN)/python scripts/leaderboard.py --jobs $(or $(JOBS),1) $(if $(DEPTH),--depth)

leaderboard-quick: .venv/installed  ## church, one seed, few prompts, forgetting and integrity only
	$(BIN)/python scripts/leaderboard.py --quick

leaderboard-pictoscenes: .venv/installed  ## sixteen algorithms on scenes of several subjects, one seed: hours; JOBS and DEPTH as above
	$(BIN)/python scripts/leaderboard.py --world pictoscenes --jobs $(or $(JOBS),1) $(if $(DEPTH),--depth)

variance: .venv/installed  ## how far numbers move by unlearning seed, sampling seed, original and prompts; goes on where it stopped
	$(BIN)/python scripts/variance.py

unseen: .venv/installed  ## integrity on words that no retain prompt of the training says
	$(BIN)/python scripts/unseen_words.py

RUNS ?= outputs
attacks: .venv/installed  ## every attack on the runs below RUNS, one table; goes on where it stopped
	$(BIN)/python scripts/attacks.py $(RUNS)

clean:  ## remove .venv, .venv-lowest and dist; runs, cache and oracles, in outputs/, stay
	rm -rf .venv .venv-lowest dist

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "%-24s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
