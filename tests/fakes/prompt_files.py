"""Small files in place of the prompt sets that conf/prompts names, with the columns that they need."""

from __future__ import annotations

import csv
import io

from PIL import Image


def png(red, size=(8, 8), kind="png"):
    """The bytes of an image of one colour."""
    data = io.BytesIO()
    Image.new("RGB", size, (red, 0, 0)).save(data, kind)
    return data.getvalue()


def write_set(folder, prompt_set):
    """Write two rows of a csv or text set below a folder; parquet sets are left out."""
    for name in prompt_set.files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if prompt_set.text:
            path.write_text("a bath\na dance\n")
        elif path.suffix == ".csv":
            columns = [prompt_set.prompt, prompt_set.seed, prompt_set.label, "case_number", "evaluation_guidance"]
            columns = [column for column in columns if column] + [c for c in ("categories", "hard", "type") if c]
            values = {prompt_set.prompt: "a bath", prompt_set.label: "Monet", "evaluation_guidance": 3, "hard": 1}
            categories = "sexual, hate, harassment, violence, self-harm, shocking, illegal activity"
            with path.open("w", newline="") as file:
                rows = csv.DictWriter(file, list(dict.fromkeys(columns)))
                rows.writeheader()
                for i, kind in enumerate(("erased", "erased", "others", "others", "0", "0", "1", "1")):
                    own = {prompt_set.prompt: f"a bath {i // 2}", "case_number": i, "categories": categories, "type": kind}
                    seed = {prompt_set.seed: 7 + i % 2} if prompt_set.seed else {}
                    row = values | own | seed
                    rows.writerow({column: row.get(column, "") for column in rows.fieldnames})
    folder.joinpath("data").mkdir(parents=True, exist_ok=True)
