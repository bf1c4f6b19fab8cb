"""Class paths of earlier versions, so that their runs can still be measured, attacked and resumed."""

from __future__ import annotations

RENAMED = {
    "unlearnbench.algos.none.Nothing": "unlearnbench.algos.none.NoTraining",
    "unlearnbench.data.Concept": "unlearnbench.data.concept.Concept",
    "unlearnbench.data.Retain": "unlearnbench.data.retain_set.Retain",
    "unlearnbench.data.TrainingSource": "unlearnbench.data.training_source.TrainingSource",
    "unlearnbench.listed.Listed": "unlearnbench.data.concept_catalog.CatalogConcept",
    "unlearnbench.several.Several": "unlearnbench.data.concept_group.ConceptGroup",
    "unlearnbench.sets.PromptSet": "unlearnbench.data.prompt_sets.PromptSet",
}


def current_path(path: str) -> str:
    """Today's dotted path of a class, for one that a run.json or a user's yaml may have from an earlier version."""
    return RENAMED.get(path, path)
