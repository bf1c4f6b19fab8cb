"""An image depends on its prompt and seed alone: on no batch size, order, neighbour or interruption."""

from __future__ import annotations

import hashlib
import json

import pytest
import torch

from unlearnbench.data.images import Images
from unlearnbench.data.prompts import Prompt, image_seed
from unlearnbench.sampling import ImageGenerator, Sampling, generate, sample

PROMPTS = [Prompt(f"a {color} {subject}", "far") for color in ("red", "blue") for subject in ("star", "tree", "fish", "house")]


def settings(**changes):
    return Sampling(**{"per_prompt": 1, "steps": 2, "guidance": 2.0, "batch": 4, **changes})


def alike(left, right):
    """Equal up to one level in a few pixels."""
    apart = (left.int() - right.int()).abs()
    return apart.max() <= 1 and (apart > 0).float().mean() < 0.01


def by_name(images):
    return dict(zip([(shot.prompt, shot.seed) for shot in images], images.pixels(), strict=True))


def test_the_batch_size_does_not_matter(tiny, tmp_path):
    def pixels(batch):
        return sample("", ImageGenerator(tiny), PROMPTS, settings(batch=batch), tmp_path / str(batch)).pixels()

    one, five, eight = map(pixels, (1, 5, 8))
    assert alike(one, five)
    assert alike(one, eight)
    assert not alike(one[0], one[1])


def test_order_and_neighbours_do_not_matter(tiny, tmp_path):
    whole = by_name(sample("", ImageGenerator(tiny), PROMPTS, settings(per_prompt=2), tmp_path / "whole"))
    part = by_name(sample("", ImageGenerator(tiny), PROMPTS[5:2:-1], settings(per_prompt=3), tmp_path / "part"))
    shared = whole.keys() & part.keys()
    assert len(shared) == 6
    assert all(alike(whole[key], part[key]) for key in shared)


def test_the_same_settings_give_the_same_bytes_and_another_seed_other_images(tiny, tmp_path, files):
    first, again, other = (
        sample("", ImageGenerator(tiny), PROMPTS[:2], settings(seed=seed), tmp_path / name)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert files(first.folder) == files(again.folder)
    assert not any(alike(a, b) for a, b in zip(first.pixels(), other.pixels(), strict=True))


def test_global_randomness_is_neither_used_nor_moved(tiny):
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = generate(tiny, ["a star"], [7], 2, 2.0)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(generate(tiny, ["a star"], [7], 2, 2.0), first)


def test_images_are_written_as_the_index_says(tiny, tmp_path):
    seeded = Prompt("a church", "forget", label="a church", seed=5)
    images = sample("", ImageGenerator(tiny), [*PROMPTS[:2], seeded], settings(per_prompt=2), tmp_path)
    assert [shot.file for shot in images] == [f"{i:05d}.png" for i in range(6)]
    assert [shot.prompt for shot in images] == 2 * ["a red star", "a red tree", "a church"]
    assert (images[2].split, images[2].label, images[2].seed) == ("forget", "a church", 5)
    assert images[5].seed != 5
    for shot in images:
        assert shot.sha256 == hashlib.sha256((tmp_path / shot.file).read_bytes()).hexdigest()
    assert images.pixels().shape == (6, tiny.size, tiny.size, 3)
    assert list(Images(tmp_path)) == list(images)


def spoil_nothing(folder):
    pass


def spoil_two_images(folder):
    for name in ("00001.png", "00006.png"):
        (folder / name).unlink()


def spoil_the_index(folder):
    index = folder / "index.jsonl"
    index.write_text(index.read_text()[:-40])


def spoil_both(folder):
    spoil_two_images(folder)
    lines = (folder / "index.jsonl").read_text().splitlines()
    (folder / "index.jsonl").write_text("\n".join(lines[:5]) + "\n" + lines[5][:30])


def spoil_a_byte(folder):
    path = folder / "00003.png"
    path.write_bytes(path.read_bytes()[:-1] + b"x")


def spoil_everything(folder):
    for path in folder.iterdir():
        path.unlink()


@pytest.mark.parametrize("spoil", [spoil_nothing, spoil_two_images, spoil_the_index, spoil_both, spoil_a_byte, spoil_everything])
def test_a_spoilt_folder_is_completed_to_the_same_bytes(spoil, tiny, tmp_path, files):
    complete = sample("", ImageGenerator(tiny), PROMPTS, settings(), tmp_path)
    before = files(tmp_path)
    spoil(tmp_path)
    resumed = sample("", ImageGenerator(tiny), PROMPTS, settings(), tmp_path)
    assert list(resumed) == list(complete)
    after = files(tmp_path)
    lines = [set(content.pop("index.jsonl").splitlines()) for content in (before, after)]
    assert lines[0] == lines[1]
    assert after == before
    assert list(Images(tmp_path)) == list(complete)


def test_only_the_batches_that_miss_an_image_are_generated_again(tiny, tmp_path):
    sample("", ImageGenerator(tiny), PROMPTS, settings(), tmp_path)
    drawn = []

    class Counted(ImageGenerator):
        def batch(self, batch):
            drawn.append(batch.prompts)
            return super().batch(batch)

    sample("", Counted(tiny), PROMPTS, settings(), tmp_path)
    assert drawn == []
    spoil_a_byte(tmp_path)
    sample("", Counted(tiny), PROMPTS, settings(), tmp_path)
    assert drawn == [[p.text for p in PROMPTS[:4]]]


def test_images_of_other_prompts_or_seeds_are_not_taken_for_ours(tiny, tmp_path):
    sample("", ImageGenerator(tiny), PROMPTS[:2], settings(), tmp_path)
    images = sample("", ImageGenerator(tiny), PROMPTS[2:4], settings(), tmp_path)
    assert [shot.prompt for shot in images] == [p.text for p in PROMPTS[2:4]]
    again = sample("", ImageGenerator(tiny), PROMPTS[2:4], settings(seed=1), tmp_path)
    assert {shot.seed for shot in again}.isdisjoint(shot.seed for shot in images)


def test_image_seed_is_the_hash_that_the_index_lets_anyone_repeat():
    told = int(hashlib.sha256(b"3/1/a red star").hexdigest()[:8], 16) // 2
    assert image_seed(3, PROMPTS[0], 1) == told
    seeds = {image_seed(seed, prompt, repeat) for seed in range(3) for prompt in PROMPTS for repeat in range(3)}
    assert len(seeds) == 3 * len(PROMPTS) * 3
    assert all(0 <= seed < 2**31 for seed in seeds)


@pytest.mark.parametrize(("seed", "repeat", "own"), [(0, 0, True), (0, 1, False), (1, 0, False)])
def test_a_prompt_with_a_seed_of_its_own_has_it_for_its_first_image(seed, repeat, own):
    assert (image_seed(seed, Prompt("a star", seed=9), repeat) == 9) is own


def test_the_limit_counts_each_split_by_itself():
    prompts = [Prompt(str(i), split) for i in range(4) for split in ("forget", "far")]
    assert [p.text + p.split for p in Sampling(prompts=2).limit(prompts)] == ["0forget", "0far", "1forget", "1far"]
    assert Sampling().limit(prompts) == prompts


def test_guidance_of_one_or_less_asks_the_model_once(tiny):
    told = [generate(tiny, ["a red star"], [0], 2, guidance) for guidance in (1.0, 0.0, 3.0)]
    assert torch.equal(told[0], told[1])
    assert not torch.equal(told[0], told[2])


def test_stopping_half_way_leaves_latents_that_go_on_to_the_same_image(tiny):
    text, empty = tiny.encode_prompts(["a star"]), tiny.encode_prompts([""])

    def latents(stop):
        return tiny.denoise(text, empty, [torch.Generator().manual_seed(0)], 4, 2.0, stop_after=stop)

    noise = torch.randn(1, *tiny.latent_shape(), generator=torch.Generator().manual_seed(0))
    assert torch.equal(latents(0), noise * tiny.scheduler.init_noise_sigma)
    assert torch.equal(latents(4), latents(None))
    assert not torch.equal(latents(2), latents(4))
    times = [int(tiny.timestep_after(step, 4)) for step in range(4)]
    assert times == sorted(times, reverse=True)


def test_the_index_is_plain_json(tiny, tmp_path):
    sample("", ImageGenerator(tiny), PROMPTS[:1], settings(), tmp_path)
    [line] = (tmp_path / "index.jsonl").read_text().splitlines()
    assert set(json.loads(line)) == {"file", "prompt", "split", "label", "seed", "sha256"}
