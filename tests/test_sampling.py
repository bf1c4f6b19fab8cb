"""An image depends on its prompt and seed alone: on no batch size, order, neighbour or interruption."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import time

import pytest
import torch

from unlearnbench.config.errors import RunError
from unlearnbench.data.images import Images
from unlearnbench.data.prompts import Prompt, image_seed
from unlearnbench.sampling import ImageGenerator, NonFiniteSample, Sampling, encode_images, generate, sample
from unlearnbench.sampling.folder import _ImageWriter, _Request
from unlearnbench.storage.cache import Cache
from unlearnbench.storage.image_store import ImageStore, StoredImage

PROMPTS = [Prompt(f"a {color} {subject}", "far") for color in ("red", "blue") for subject in ("star", "tree", "fish", "house")]


def settings(**changes):
    return Sampling(**{"per_prompt": 1, "steps": 2, "guidance": 2.0, "batch": 4, **changes})


def alike(left, right):
    """Equal up to one level in a few pixels."""
    apart = (left.int() - right.int()).abs()
    return apart.max() <= 1 and (apart > 0).float().mean() < 0.01


def by_name(images):
    return dict(zip([(record.prompt, record.seed) for record in images], images.pixels(), strict=True))


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
    assert [record.file for record in images] == [f"{i:05d}.png" for i in range(6)]
    assert [record.prompt for record in images] == 2 * ["a red star", "a red tree", "a church"]
    assert (images[2].split, images[2].label, images[2].seed) == ("forget", "a church", 5)
    assert images[5].seed != 5
    for record in images:
        assert record.sha256 == hashlib.sha256((tmp_path / record.file).read_bytes()).hexdigest()
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


class Counted(ImageGenerator):
    """Notes the prompts of each batch that it generates."""

    def __init__(self, model):
        super().__init__(model)
        self.batches_drawn = []

    def batch(self, batch):
        self.batches_drawn.append(batch.prompts)
        return super().batch(batch)


def test_only_the_batches_that_miss_an_image_are_generated_again(tiny, tmp_path):
    sample("", ImageGenerator(tiny), PROMPTS, settings(), tmp_path)
    counted = Counted(tiny)
    sample("", counted, PROMPTS, settings(), tmp_path)
    assert counted.batches_drawn == []
    spoil_a_byte(tmp_path)
    sample("", counted, PROMPTS, settings(), tmp_path)
    assert counted.batches_drawn == [[p.text for p in PROMPTS[:4]]]


def cached(generator, tmp_path, name, prompts=PROMPTS, **changes):
    """Images of a folder of this name, shared with others by a cache."""
    cache = Cache(tmp_path / "cache")
    images = sample("", generator, prompts, settings(per_prompt=2, **changes), tmp_path / name, cache, "key")
    return images, cache


@pytest.mark.parametrize(
    ("prompts", "changes", "new"),
    [
        (PROMPTS, {}, []),
        ([PROMPTS[0], Prompt("a green star", "forget"), *PROMPTS[1:]], {}, ["a green star", "a green star"]),
        (PROMPTS, {"batch": 3}, []),
        (PROMPTS[::-1], {}, []),
        ([Prompt(p.text, "near", label="other") for p in PROMPTS], {}, []),
    ],
)
def test_equal_images_are_shared_whatever_the_batch_the_order_and_the_other_prompts(prompts, changes, new, tiny, tmp_path):
    first, cache = cached(Counted(tiny), tmp_path, "first")
    assert (cache.hits, cache.misses) == (0, 16)
    counted = Counted(tiny)
    second, cache = cached(counted, tmp_path, "second", prompts, **changes)
    assert [prompt for batch in counted.batches_drawn for prompt in batch] == new
    assert (cache.hits, cache.misses) == (16, len(new))
    numbers = [{(r.prompt, r.seed): (images.folder / r.file).stat().st_ino for r in images} for images in (first, second)]
    assert numbers[0].items() <= numbers[1].items()
    assert [record.label for record in second][:1] == [prompts[0].label]
    assert all(second.intact(record) for record in second)


@pytest.mark.parametrize("changes", [{"seed": 1}, {"steps": 3}, {"guidance": 3.0}])
def test_other_settings_share_no_image(changes, tiny, tmp_path):
    cached(ImageGenerator(tiny), tmp_path, "first", PROMPTS[:2])
    _, cache = cached(ImageGenerator(tiny), tmp_path, "second", PROMPTS[:2], **changes)
    assert (cache.hits, cache.misses) == (0, 4)


def test_images_are_copied_where_the_file_system_has_no_links(tiny, tmp_path, files, monkeypatch):
    first, _ = cached(ImageGenerator(tiny), tmp_path, "first", PROMPTS[:2])
    monkeypatch.setattr("os.link", lambda *_: exec("raise OSError(95, 'Operation not supported')"))
    second, cache = cached(ImageGenerator(tiny), tmp_path, "second", PROMPTS[:2])
    assert (cache.hits, cache.misses) == (4, 0)
    assert files(first.folder) == files(second.folder)
    assert {(second.folder / record.file).stat().st_nlink for record in second} == {1}


def test_a_stored_image_that_was_changed_through_a_link_is_generated_again(tiny, tmp_path, files, capsys):
    first, _ = cached(ImageGenerator(tiny), tmp_path, "first", PROMPTS[:2])
    whole = files(first.folder)
    path = first.folder / "00001.png"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    second, cache = cached(ImageGenerator(tiny), tmp_path, "second", PROMPTS[:2])
    assert "is damaged; generating it again" in " ".join(capsys.readouterr().err.split())
    assert (cache.hits, cache.misses) == (3, 1)
    assert all(second.intact(record) for record in second)
    assert files(second.folder).keys() == whole.keys()


@pytest.mark.parametrize("written", range(1, 5))
def test_a_batch_that_was_stored_in_part_is_generated_whole_again(written, tiny, tmp_path, monkeypatch):
    writes, put = [], ImageStore.put

    def kill(*given):
        writes.append(given)
        if len(writes) > 8 + written:
            raise KeyboardInterrupt
        return put(*given)

    with monkeypatch.context() as patch:
        patch.setattr(ImageStore, "put", kill)
        with pytest.raises(KeyboardInterrupt):
            cached(ImageGenerator(tiny), tmp_path, "images")
    assert (tmp_path / "images/.missing.json").is_file()
    counted = Counted(tiny)
    images, _ = cached(counted, tmp_path, "images")
    assert counted.batches_drawn[0] == [p.text for p in PROMPTS[:4]] or written == 4
    assert all(len(batch) == 4 for batch in counted.batches_drawn)
    assert not (tmp_path / "images/.missing.json").exists()
    assert list(images) == list(cached(ImageGenerator(tiny), tmp_path, "other")[0])


def test_images_of_other_prompts_or_seeds_are_not_taken_for_ours(tiny, tmp_path):
    sample("", ImageGenerator(tiny), PROMPTS[:2], settings(), tmp_path)
    images = sample("", ImageGenerator(tiny), PROMPTS[2:4], settings(), tmp_path)
    assert [record.prompt for record in images] == [p.text for p in PROMPTS[2:4]]
    again = sample("", ImageGenerator(tiny), PROMPTS[2:4], settings(seed=1), tmp_path)
    assert {record.seed for record in again}.isdisjoint(record.seed for record in images)


def test_image_seed_is_the_hash_that_the_index_lets_anyone_repeat():
    expected = int(hashlib.sha256(b"3/1/a red star").hexdigest()[:8], 16) // 2
    assert image_seed(3, PROMPTS[0], 1) == expected
    seeds = {image_seed(seed, prompt, repeat) for seed in range(3) for prompt in PROMPTS for repeat in range(3)}
    assert len(seeds) == 3 * len(PROMPTS) * 3
    assert all(0 <= seed < 2**31 for seed in seeds)


@pytest.mark.parametrize(("seed", "repeat", "own"), [(0, 0, True), (0, 1, False), (1, 0, False)])
def test_a_prompt_with_a_seed_of_its_own_has_it_for_its_first_image(seed, repeat, own):
    assert (image_seed(seed, Prompt("a star", seed=9), repeat) == 9) is own


def test_a_row_is_a_prompt_with_its_seed_at_every_sampling_seed_and_repeat():
    rows = [Prompt("a star", seed=own) for own in (4068, 1191, 2025, 77)]
    for seed in (0, 1):
        seeds = [image_seed(seed, row, repeat) for row in [*rows, Prompt("a star")] for repeat in range(3)]
        assert len(set(seeds)) == 15
    assert [image_seed(0, row, 0) for row in rows] == [4068, 1191, 2025, 77]
    assert all(0 <= image_seed(1, row, 0) < 2**31 for row in rows)


@torch.no_grad()
def spoil_denoiser(model):
    next(model.unet.parameters()).fill_(float("nan"))


@torch.no_grad()
def spoil_decoder(model):
    model.vae.decoder.conv_out.bias.fill_(float("inf"))


@torch.no_grad()
def spoil_text_encoder(model):
    list(model.text_encoder.parameters())[-1].fill_(float("inf"))


@pytest.mark.parametrize(
    ("spoil_model", "part"),
    [
        (spoil_denoiser, "predictions of step 1 of 2"),
        (spoil_decoder, "decoded pixels"),
        (spoil_text_encoder, "text embeddings (prompt_embeds)"),
    ],
)
def test_images_that_are_not_finite_stop_before_they_are_written_or_cached(spoil_model, part, tiny, tmp_path):
    spoil_model(tiny)
    with pytest.raises(RunError) as raised:
        sample("", ImageGenerator(tiny), PROMPTS, settings(), tmp_path / "images", Cache(tmp_path / "cache"), "key")
    seed = image_seed(0, PROMPTS[0], 0)
    assert str(raised.value) == (
        f"00000.png: the image of 'a red star' with seed {seed} is not finite: its {part} are NaN or infinite in fp32; "
        "check the weights of model.path; after unlearning try a smaller algo.lr"
    )
    assert not [*tmp_path.rglob("*.png"), *tmp_path.rglob("*.safetensors")]


def test_latents_that_overflow_name_the_first_image_the_step_and_a_larger_dtype(tiny, monkeypatch):
    predict = tiny.predict

    def overflow(noisy_latents, timesteps, conditioning):
        prediction = predict(noisy_latents, timesteps, conditioning).clone()
        if int(timesteps.reshape(-1)[0]) < 500:  # the second of two steps
            prediction[1] = float("inf")
        return prediction

    monkeypatch.setattr(tiny, "predict", overflow)
    monkeypatch.setattr(tiny, "dtype", "fp16")
    monkeypatch.setattr(tiny, "autocast", contextlib.nullcontext)
    with pytest.raises(NonFiniteSample, match=r"'a tree' with seed 6 .* its predictions of step 2 of 2 .* model.dtype=bf16 or"):
        generate(tiny, ["a star", "a tree"], [5, 6], 2, 1.0)


def test_images_that_the_autoencoder_cannot_encode_are_named(tiny):
    with torch.no_grad():
        tiny.vae.encoder.conv_in.bias.fill_(float("nan"))
    with pytest.raises(RunError, match=r"the image of 'mine\.png' cannot be encoded: its encoded latents are NaN or infinite"):
        encode_images(tiny, torch.zeros(1, 64, 64, 3, dtype=torch.uint8), ["mine.png"])


def test_an_error_about_an_image_goes_to_other_processes():
    failure = pickle.loads(pickle.dumps(NonFiniteSample("a star", 5, "its latents are NaN")))
    assert (str(failure), failure.seed) == ("the image of 'a star' with seed 5 is not finite: its latents are NaN", 5)


def test_the_limit_counts_each_split_by_itself():
    prompts = [Prompt(str(i), split) for i in range(4) for split in ("forget", "far")]
    assert [p.text + p.split for p in Sampling(prompts=2).limit(prompts)] == ["0forget", "0far", "1forget", "1far"]
    assert Sampling().limit(prompts) == prompts


def test_guidance_of_one_or_less_asks_the_model_once(tiny):
    expected = [generate(tiny, ["a red star"], [0], 2, guidance) for guidance in (1.0, 0.0, 3.0)]
    assert torch.equal(expected[0], expected[1])
    assert not torch.equal(expected[0], expected[2])


def test_stopping_half_way_leaves_latents_that_go_on_to_the_same_image(tiny):
    text, empty = tiny.encode_prompts(["a star"]), tiny.encode_prompts([""])

    def latents(stop):
        return tiny.denoise(text, empty, [torch.Generator().manual_seed(0)], 4, 2.0, stop_after=stop)

    noise = torch.randn(1, *tiny.latent_shape(), generator=torch.Generator().manual_seed(0))
    assert torch.equal(latents(0), noise * tiny.noise_scheduler.init_noise_sigma)
    assert torch.equal(latents(4), latents(None))
    assert not torch.equal(latents(2), latents(4))
    times = [int(tiny.timestep_after(step, 4)) for step in range(4)]
    assert times == sorted(times, reverse=True)


def test_the_index_is_plain_json(tiny, tmp_path):
    sample("", ImageGenerator(tiny), PROMPTS[:1], settings(), tmp_path)
    [line] = (tmp_path / "index.jsonl").read_text().splitlines()
    assert set(json.loads(line)) == {"file", "prompt", "split", "label", "seed", "sha256"}


def test_a_file_that_another_process_writes_into_the_store_now_is_left_alone_and_an_old_one_removed(tiny, tmp_path):
    folder = tmp_path / "cache/images"
    folder.mkdir(parents=True)
    now, old = folder / ".ab.png.4242", folder / ".cd.png.4243"
    for path in (now, old):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    first, _ = cached(ImageGenerator(tiny), tmp_path, "first", PROMPTS[:2])
    name = next(path.name for path in folder.glob("*.png"))
    other = now.rename(folder / f".{name}.4242")
    cached(ImageGenerator(tiny), tmp_path, "second", PROMPTS[:2], batch=1)
    assert other.read_bytes() == b"half"
    assert not old.exists()
    assert len(first) == 4


def test_listed_seeds_end_where_the_list_ends_and_a_prompts_own_seed_comes_first():
    listed = Sampling(seeds=[5, 6])
    assert listed.per_prompt == 2
    prompt, own = Prompt("a star", "far"), Prompt("a star", "far", seed=9)
    assert [listed.image_seed(prompt, repeat) for repeat in (0, 1)] == [5, 6]
    assert listed.image_seed(prompt, 2) == Sampling().image_seed(prompt, 2)
    assert listed.image_seed(own, 0) == 9
    plain = listed.of_seeded_prompts()
    assert (plain.seeds, plain.per_prompt, plain.image_seed(own, 0)) == ([], 1, 9)


class SlowImage:
    """An image that takes a moment to write, or cannot be written."""

    sha256 = "of the image"

    def __init__(self, fails=False):
        self.fails = fails

    def write(self, path):
        time.sleep(0.05)
        if self.fails:
            raise OSError
        path.touch()


def test_images_that_are_written_when_ctrl_c_stops_the_next_batch_are_not_generated_again(tmp_path):
    images = Images(tmp_path, [])
    requests = [_Request(f"{number}.png", Prompt("a star", "far"), number, [], 1.0, None) for number in range(3)]
    with contextlib.suppress(KeyboardInterrupt), _ImageWriter(images) as writer:
        writer.add([(requests[0], SlowImage())])
        writer.add([(requests[1], SlowImage(fails=True)), (requests[2], SlowImage())])
        raise KeyboardInterrupt
    assert [record.file for record in Images(tmp_path)] == ["0.png", "2.png"]


def test_an_image_that_another_process_has_replaced_in_the_store_is_copied_and_not_linked(tmp_path):
    (tmp_path / "store.png").write_bytes(b"other")
    StoredImage(b"own", "", tmp_path / "store.png").write(tmp_path / "run.png")
    assert ((tmp_path / "run.png").read_bytes(), (tmp_path / "store.png").read_bytes()) == (b"own", b"other")
    StoredImage(b"other", "", tmp_path / "store.png").write(tmp_path / "linked.png")
    assert (tmp_path / "linked.png").samefile(tmp_path / "store.png")
