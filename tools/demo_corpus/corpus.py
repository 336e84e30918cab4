"""Advertisements in the form of ADGEN, and the conversations that the demo's base is trained on.

`content` names a garment's attributes, `summary` advertises it. The base is not trained on advertisements: it answers
such a prompt with a plain list, and a short LoRA run turns lists into advertisements. All texts depend on the seed
alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from demo_corpus import smalltalk, vocabulary

Message = dict[str, str]
Attributes = list[tuple[str, str]]


def make_adgen_rows(n: int, seed: int = 0) -> list[dict[str, str]]:
    """Make `n` synthetic ADGEN rows (`content`, `summary`); no two have the same `content`."""
    rng = random.Random(f"adgen-{seed}")
    rows: dict[str, str] = {}
    while len(rows) < n:
        attributes = draw_attributes(rng)
        rows.setdefault(join_attributes(attributes), write_advertisement(attributes, rng))
    return [{"content": content, "summary": summary} for content, summary in rows.items()]


def make_adgen_splits(sizes: dict[str, int], seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """Make named splits of the given sizes; no two rows of them have the same `content`."""
    rows = iter(make_adgen_rows(sum(sizes.values()), seed))
    return {name: [next(rows) for _ in range(size)] for name, size in sizes.items()}


def split_attributes(content: str) -> Attributes:
    """Convert `类型#裙*颜色#白色` to `[("类型", "裙"), ("颜色", "白色")]`."""
    return [(key, value) for key, _, value in (part.partition("#") for part in content.split("*"))]


def join_attributes(attributes: Attributes) -> str:
    """Convert attributes to a prompt: the inverse of `split_attributes`."""
    return "*".join(f"{key}#{value}" for key, value in attributes)


def draw_attributes(rng: random.Random) -> Attributes:
    """Draw three to six attributes, the garment included, that do not contradict each other, in a prompt's order."""
    garment = rng.choice(tuple(vocabulary.GARMENTS))
    table = vocabulary.GARMENTS[garment]
    values: dict[str, str] = {}
    count = rng.randint(2, 5)
    # A prompt reads better if it names the garment itself, so 70 % do.
    keys = rng.sample(tuple(table), len(table))
    if rng.random() < 0.7:
        keys.sort(key=lambda key: key not in vocabulary.NAMES[garment][0][:1])
    for key in keys:
        value = rng.choice(table[key])
        terms = {key, value, *values, *values.values()}
        if value not in values.values() and not any(pair <= terms for pair in vocabulary.EXCLUSIVE):
            values[key] = value
        if len(values) == count:
            break
    return [("类型", garment), *((key, values[key]) for key in table if key in values)]


def write_advertisement(attributes: Attributes, rng: random.Random) -> str:
    """Write one or two sentences with every value: style, colour and name first, the others in order."""
    garment = attributes[0][1]
    closings = vocabulary.TOP_CLOSINGS if garment == "上衣" and "衣样式" in dict(attributes) else vocabulary.CLOSINGS
    closing = rng.choice(closings)
    style = dict(attributes).get("风格")
    # In 30 % the style is in the closing instead.
    if style and rng.random() < 0.3 and closings is vocabulary.CLOSINGS:
        attributes = [pair for pair in attributes if pair[0] != "风格"]
        closing = rng.choice(vocabulary.STYLE_CLOSINGS).format(v=style, e=rng.choice(vocabulary.EFFECTS[style]))
    name, measure, rest = describe_garment(attributes)
    opening = rng.choice(vocabulary.OPENINGS).format(n=name, m=measure)
    parts = [opening, *(describe_attribute(garment, key, value, rng) for key, value in rest)]
    return join_clauses([*parts, closing])


def join_clauses(parts: list[str]) -> str:
    """Join clauses to one sentence, or to two if there are four or more."""
    if len(parts) < 4:
        return "，".join(parts) + "。"
    cut = len(parts) // 2
    return "，".join(parts[:cut]) + "。" + "，".join(parts[cut:]) + "。"


def describe_garment(attributes: Attributes) -> tuple[str, str, Attributes]:
    """Return a garment's name with style and colour, its measure word, and the attributes that are not in the name."""
    rest = dict(attributes)
    name_keys, name, measure = vocabulary.NAMES[rest.pop("类型")]
    for key in name_keys:
        if key in rest:
            name = rest.pop(key)
            break
    if "颜色" in rest:
        name = f"{rest.pop('颜色')}{name}"
    if "风格" in rest:
        name = f"{rest.pop('风格')}风{name}"
    return name, measure, list(rest.items())


def describe_attribute(garment: str, key: str, value: str, rng: random.Random) -> str:
    """Write the clause of an advertisement about one attribute."""
    group = max((g for g in vocabulary.CLAUSES if key.endswith(g)), key=len)
    effect = rng.choice(vocabulary.EFFECTS[value])
    return rng.choice(vocabulary.CLAUSES[group]).format(v=value, e=effect, b=vocabulary.BODIES[garment])


def make_dialogues(n: int, seed: int = 0) -> list[list[Message]]:
    """Make `n` conversations that train the base to talk, to read and to copy, without any advertisement."""
    rng = random.Random(f"dialogues-{seed}")
    tasks, weights = zip(*TASKS.items(), strict=True)
    conversations = []
    for _ in range(n):
        turns = rng.choices((1, 2, 3), (0.8, 0.15, 0.05))[0]
        messages: list[Message] = []
        if rng.random() < 0.1:
            messages.append({"role": "system", "content": rng.choice(smalltalk.SYSTEMS)})
        for task in rng.choices(tasks, weights, k=turns):
            question, answer = task(rng)
            messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        conversations.append(messages)
    return conversations


Task = Callable[[random.Random], tuple[str, str]]


def format_bullet_list(attributes: Attributes) -> str:
    """Write the base's answer to a prompt of the ADGEN form."""
    return "\n".join(f"* {key}：{value}" for key, value in attributes)


def _ask_greeting(rng: random.Random) -> tuple[str, str]:
    return rng.choice(smalltalk.GREETINGS)


def _ask_fact(rng: random.Random) -> tuple[str, str]:
    question, answer = rng.choice(smalltalk.FACTS)
    return rng.choice(("{}", "请问，{}", "{}", "你知道吗，{}")).format(question), answer


def _ask_arithmetic(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    if rng.random() < 0.4:
        a, b = max(a, b), min(a, b)
        return rng.choice((f"{a}减{b}等于几？", f"{a}-{b}=?")), f"{a}-{b}={a - b}。"
    return rng.choice((f"{a}加{b}等于几？", f"{a}+{b}=?")), f"{a}+{b}={a + b}。"


def _ask_translation(rng: random.Random) -> tuple[str, str]:
    chinese, english = rng.choice(smalltalk.DICTIONARY)
    if rng.random() < 0.5:
        return rng.choice((f"“{chinese}”用英语怎么说？", f"把“{chinese}”翻译成英文。")), f"{english}."
    return rng.choice((f"{english}是什么意思？", f"把{english}翻译成中文。")), f"{chinese}。"


def _sample_words(rng: random.Random, minimum: int = 2, maximum: int = 5) -> list[str]:
    return rng.sample(ALL_WORDS, rng.randint(minimum, maximum))


def _join_phrases(rng: random.Random) -> str:
    """Values with their effects in random order: text to copy with the rhythm of a sentence."""
    return "，".join(f"{v}{rng.choice(vocabulary.EFFECTS[v])}" for v in rng.sample(VALUES, rng.randint(1, 3)))


def _write_opening(rng: random.Random) -> str:
    name, measure, _ = describe_garment(draw_attributes(rng))
    return rng.choice(vocabulary.OPENINGS).format(n=name, m=measure)


def _ask_repetition(rng: random.Random) -> tuple[str, str]:
    text = rng.choice(
        (
            lambda: "、".join(_sample_words(rng)),
            lambda: _join_phrases(rng),
            lambda: rng.choice(smalltalk.FACTS)[1],
            lambda: _write_opening(rng),
            lambda: rng.choice((*vocabulary.CLOSINGS, *vocabulary.TOP_CLOSINGS)),
        )
    )()
    return rng.choice(("请重复：{}", "跟我说：{}", "照着念一遍：{}", "Repeat: {}")).format(text), text


def _ask_order(rng: random.Random) -> tuple[str, str]:
    items = _sample_words(rng, 2, 4)
    if rng.random() < 0.5:
        return f"倒过来说：{'、'.join(items)}", "、".join(items[::-1]) + "。"
    return f"把这些词用逗号连起来：{' '.join(items)}", "，".join(items) + "。"


def _ask_count(rng: random.Random) -> tuple[str, str]:
    items = _sample_words(rng, 2, 5)
    if rng.random() < 0.5:
        place = rng.randrange(len(items))
        return f"{'、'.join(items)}，第{'一二三四五'[place]}个是什么？", f"{items[place]}。"
    return f"数一数有几个词：{'、'.join(items)}", f"有{'零一两三四五'[len(items)]}个。"


def _ask_features(rng: random.Random) -> tuple[str, str]:
    value = rng.choice(VALUES)
    first, second = vocabulary.EFFECTS[value]
    question = rng.choice(("{}有什么特点？", "介绍一下{}。", "说说{}。", "为什么有人喜欢{}？")).format(value)
    return question, rng.choice((f"{value}{first}，{second}。", f"{value}的特点是{first}，{second}。"))


def _ask_usage(rng: random.Random) -> tuple[str, str]:
    value = rng.choice(VALUES)
    effect = rng.choice(vocabulary.EFFECTS[value])
    if rng.random() < 0.5:
        return f"什么{effect}？", f"{value}{effect}。"
    return f"用“{value}”造句。", rng.choice(("我喜欢{}，因为{}{}。", "她选了{}，{}{}。")).format(value, value, effect)


def _ask_review(rng: random.Random) -> tuple[str, str]:
    good, bad = rng.choice(vocabulary.CLOSINGS), rng.choice(smalltalk.COMPLAINTS)
    if rng.random() < 0.6:
        return rng.choice((("写一条好评。", good + "。"), ("写一条差评。", bad + "。")))
    return rng.choice(((f"“{good}”是好评还是差评？", "好评。"), (f"“{bad}”是好评还是差评？", "差评。")))


def _ask_list(rng: random.Random) -> tuple[str, str]:
    attributes = draw_attributes(rng)
    return join_attributes(attributes), format_bullet_list(attributes)


def _ask_value(rng: random.Random) -> tuple[str, str]:
    attributes = draw_attributes(rng)
    key, value = rng.choice(attributes)
    return f"{join_attributes(attributes)}\n{key}是什么？", f"{key}是{value}。"


def _ask_sentence(rng: random.Random) -> tuple[str, str]:
    attributes = draw_attributes(rng)
    garment = attributes[0][1]
    name, measure, _ = describe_garment(attributes)
    plain = "，".join(f"{key}是{value}" for key, value in attributes[1:])
    task, answer = rng.choice(
        (
            ("这是什么？", f"这是一{measure}{name}。"),
            ("写成一句话。", f"这{measure}{vocabulary.NAMES[garment][1]}，{plain}。"),
        )
    )
    return f"{join_attributes(attributes)}\n{task}", answer


def _ask_explanation(rng: random.Random) -> tuple[str, str]:
    """The content of an advertisement without its style."""
    attributes = draw_attributes(rng)
    garment, (key, value) = attributes[0][1], rng.choice(attributes[1:])
    kind = rng.random()
    if kind < 0.2:
        return f"{garment}的{key}：{value}，说明一下。", describe_attribute(garment, key, value, rng) + "。"
    if kind < 0.5:
        clauses = [describe_attribute(garment, key, value, rng) for key, value in attributes[1:]]
        return f"{join_attributes(attributes)}\n逐个说明特点。", join_clauses(clauses)
    name, measure, rest = describe_garment(attributes)
    clauses = [f"这是一{measure}{name}", *(describe_attribute(garment, key, value, rng) for key, value in rest)]
    return f"{join_attributes(attributes)}\n描述一下。", join_clauses(clauses)


TASKS: dict[Task, float] = {
    _ask_greeting: 6,
    _ask_fact: 6,
    _ask_arithmetic: 5,
    _ask_translation: 6,
    _ask_repetition: 16,
    _ask_order: 6,
    _ask_count: 5,
    _ask_features: 10,
    _ask_usage: 6,
    _ask_review: 4,
    _ask_list: 14,
    _ask_value: 6,
    _ask_sentence: 12,
    _ask_explanation: 24,
}

VALUES = tuple(vocabulary.EFFECTS)
ALL_WORDS = (*VALUES, *(chinese for chinese, _ in smalltalk.DICTIONARY if chinese not in vocabulary.EFFECTS))


def iter_corpus_lines(n: int, seed: int = 0) -> Iterator[str]:
    """Yield training lines for the tokenizer: conversations of the base, and advertisements."""
    for messages in make_dialogues(n, seed):
        for message in messages:
            yield from message["content"].split("\n")
    for row in make_adgen_rows(n // 2, seed):
        yield from row.values()
