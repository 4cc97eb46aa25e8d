"""From a task file's examples and prompts to the task of one run."""

from __future__ import annotations

from collections.abc import Sequence

from bench.models import LoadedModel
from bench.models.quiet import quiet
from bench.records import RunSpec, TaskFacts, UserError, unknown
from bench.records.spec import Objective
from bench.tasks.kit.assemble import choice, digest, refuse_too_long, writing
from bench.tasks.kit.demonstrations import demonstrations
from bench.tasks.kit.encode import Encoded, Encoder
from bench.tasks.kit.generation import NEW_TOKENS
from bench.tasks.kit.head import plain
from bench.tasks.kit.objective import choose
from bench.tasks.kit.sampled import SampledTask
from bench.tasks.kit.values import Example, Examples, Prompt, TaskFile


@quiet()
def text_task(
    spec: RunSpec, loaded: LoadedModel, file: TaskFile, examples: Examples
) -> SampledTask:
    """Return the task: the first ``train_examples`` and ``eval_examples``, or all there are.

    Raises:
        UserError: no such prompt or objective, or they do not suit the model, the score, or
            ``seq_len``; or there are too few examples for the demonstrations.

    """
    objective = choose(spec, file.objectives, loaded)
    name = spec.prompt or file.default_prompt
    if name not in file.prompts:
        raise unknown(f"prompt of task '{spec.task}'", name, file.prompts)
    refuse_too_long(spec, loaded)
    prompt = file.prompts[name]
    train = examples.train[: spec.train_examples]
    heldback = examples.heldback[: spec.eval_examples]
    facts = _facts(spec, objective, name, prompt, examples.source, train, heldback)
    facts = facts.model_copy(update={"note": examples.note})
    if objective == "head":
        return _headed(facts, spec, loaded, file.head, train, heldback)
    shown = [(e, _candidates(prompt, e)[e.label]) for e in demonstrations(spec, examples.train)]
    encoder = Encoder(loaded, prompt, name, spec.seq_len, shown)
    if objective == "label_words":
        return _worded(facts, spec, loaded, encoder, prompt.words, train, heldback)

    def encode(some: Sequence[Example], within: int = 0) -> list[Encoded]:
        return [encoder.answered(e, _candidates(prompt, e), within) for e in some]

    if not (train or heldback)[0].answers:
        return choice(facts, spec, loaded, encode(train), encode(heldback))
    if loaded.context <= NEW_TOKENS:
        raise UserError(
            f"Task '{spec.task}' lets a model write {NEW_TOKENS} tokens, and model "
            f"'{loaded.facts.name}' takes {loaded.context} in all. Choose another model."
        )
    within = min(spec.seq_len, loaded.context - NEW_TOKENS)
    sets = [(encode(some, within), [e.answers for e in some]) for some in (train, heldback)]
    return writing(facts, spec, loaded, sets[0], sets[1])


def _facts(
    spec: RunSpec,
    objective: Objective,
    name: str,
    prompt: Prompt,
    source: str,
    train: Sequence[Example],
    heldback: Sequence[Example],
) -> TaskFacts:
    options = max((len(e.options) for e in train), default=0)
    labels = [word.strip() for word in prompt.words] or [f"option {i}" for i in range(options)]
    return TaskFacts(
        name=spec.task,
        source=source,
        objective=objective,
        prompt=None if objective == "head" else name,
        labels=labels,
        train_n=len(train),
        eval_n=len(heldback),
        eval_labels=[e.label for e in heldback] if labels else [],
        eval_digest=digest([_whole(e) for e in heldback]),
    )


def _whole(example: Example) -> tuple[object, ...]:
    """Return what tells an example from another: its text and label alone where that is all."""
    others = (dict(example.fields), example.options, example.answers)
    return (example.text, example.label, *(others if any(others) else ()))


def _candidates(prompt: Prompt, example: Example) -> Sequence[str]:
    """Return what may follow the prompt: the classes' words, the options, or the first answer."""
    if example.answers:
        return [f" {example.answers[0]}\n"]  # a newline, so that the model learns to end there
    return example.options or prompt.words


def _worded(
    facts: TaskFacts,
    spec: RunSpec,
    loaded: LoadedModel,
    encoder: Encoder,
    words: Sequence[str],
    train: Sequence[Example],
    heldback: Sequence[Example],
) -> SampledTask:
    """Ask for one token; a newline before every word belongs to the question then."""
    after = ""
    if all(word.startswith("\n") for word in words):
        masked = loaded.kind == "masked"
        after, before = ("", " ") if masked else ("\n", "")
        words = [before + word[1:] for word in words]
    candidates = encoder.candidates(words, after)
    rows = [[encoder.question(e, after) for e in some] for some in (train, heldback)]
    return choice(facts, spec, loaded, rows[0], rows[1], candidates)


def _headed(
    facts: TaskFacts,
    spec: RunSpec,
    loaded: LoadedModel,
    parts: Sequence[str],
    train: Sequence[Example],
    heldback: Sequence[Example],
) -> SampledTask:
    if spec.prompt is not None or spec.demonstrations:
        raise UserError(
            "objective = 'head' reads the text alone. Remove prompt and demonstrations, or choose "
            "another objective."
        )
    rows = [[plain(loaded, e, parts, spec.seq_len) for e in some] for some in (train, heldback)]
    return choice(facts, spec, loaded, rows[0], rows[1])
