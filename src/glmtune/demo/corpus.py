"""The demo's texts, all made here: advertisements to learn, and the conversations its base was taught with.

The advertisements follow the form of ADGEN: `content` names a garment's attributes, `summary` sells it. The
base never sees one; it can read such a prompt (it answers with a plain list) and knows the words, so that a
short LoRA run turns lists into advertisements. Everything depends on its seed alone.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from . import smalltalk
from . import vocabulary as words

Message = dict[str, str]
Attributes = list[tuple[str, str]]


def adgen_rows(n: int, seed: int = 0) -> list[dict[str, str]]:
    """`n` rows of the synthetic ADGEN (`content`, `summary`); no two share their `content`."""
    rng = random.Random(f"adgen-{seed}")
    rows: dict[str, str] = {}
    while len(rows) < n:
        attributes = draw_attributes(rng)
        rows.setdefault(join_attributes(attributes), advertise(attributes, rng))
    return [{"content": content, "summary": summary} for content, summary in rows.items()]


def adgen_splits(sizes: dict[str, int], seed: int = 0) -> dict[str, list[dict[str, str]]]:
    """Named splits of the given sizes that share no `content`."""
    rows = iter(adgen_rows(sum(sizes.values()), seed))
    return {name: [next(rows) for _ in range(size)] for name, size in sizes.items()}


def split_attributes(content: str) -> Attributes:
    """`类型#裙*颜色#白色` to `[("类型", "裙"), ("颜色", "白色")]`."""
    return [(key, value) for key, _, value in (part.partition("#") for part in content.split("*"))]


def join_attributes(attributes: Attributes) -> str:
    """The inverse of `split_attributes`."""
    return "*".join(f"{key}#{value}" for key, value in attributes)


def draw_attributes(rng: random.Random) -> Attributes:
    """A garment and three to six attributes in all, without contradictions, in a prompt's order."""
    garment = rng.choice(tuple(words.GARMENTS))
    table = words.GARMENTS[garment]
    chosen: dict[str, str] = {}
    wanted = rng.randint(2, 5)
    # A prompt that names the thing itself reads better, so most do.
    keys = rng.sample(tuple(table), len(table))
    if rng.random() < 0.7:
        keys.sort(key=lambda key: key not in words.NAMES[garment][0][:1])
    for key in keys:
        value = rng.choice(table[key])
        terms = {key, value, *chosen, *chosen.values()}
        if value not in chosen.values() and not any(pair <= terms for pair in words.EXCLUSIVE):
            chosen[key] = value
        if len(chosen) == wanted:
            break
    return [("类型", garment), *((key, chosen[key]) for key in table if key in chosen)]


def advertise(attributes: Attributes, rng: random.Random) -> str:
    """One or two sentences that say every value: style, colour and name first, then in order."""
    garment = attributes[0][1]
    closings = words.TOP_CLOSINGS if garment == "上衣" and "衣样式" in dict(attributes) else words.CLOSINGS
    closing = rng.choice(closings)
    style = dict(attributes).get("风格")
    # Now and then the style closes the text instead.
    if style and rng.random() < 0.3 and closings is words.CLOSINGS:
        attributes = [pair for pair in attributes if pair[0] != "风格"]
        closing = rng.choice(words.STYLE_CLOSINGS).format(v=style, e=rng.choice(words.EFFECTS[style]))
    name, measure, rest = heading(attributes)
    opening = rng.choice(words.OPENINGS).format(n=name, m=measure)
    parts = [opening, *(clause(garment, key, value, rng) for key, value in rest)]
    return punctuate([*parts, closing])


def punctuate(parts: list[str]) -> str:
    """One sentence, or two from four parts on."""
    if len(parts) < 4:
        return "，".join(parts) + "。"
    cut = len(parts) // 2
    return "，".join(parts[:cut]) + "。" + "，".join(parts[cut:]) + "。"


def heading(attributes: Attributes) -> tuple[str, str, Attributes]:
    """The thing's name with style and colour in front, its measure word, and the attributes not said by it."""
    rest = dict(attributes)
    name_keys, name, measure = words.NAMES[rest.pop("类型")]
    for key in name_keys:
        if key in rest:
            name = rest.pop(key)
            break
    if "颜色" in rest:
        name = f"{rest.pop('颜色')}{name}"
    if "风格" in rest:
        name = f"{rest.pop('风格')}风{name}"
    return name, measure, list(rest.items())


def clause(garment: str, key: str, value: str, rng: random.Random) -> str:
    """What an advertisement says of one attribute."""
    group = max((g for g in words.CLAUSES if key.endswith(g)), key=len)
    effect = rng.choice(words.EFFECTS[value])
    return rng.choice(words.CLAUSES[group]).format(v=value, e=effect, b=words.BODIES[garment])


def dialogues(n: int, seed: int = 0) -> list[list[Message]]:
    """`n` conversations that teach the base to talk, to read and to copy; none advertises anything."""
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


def bullet_list(attributes: Attributes) -> str:
    """What the base answers to a prompt of the ADGEN form."""
    return "\n".join(f"* {key}：{value}" for key, value in attributes)


def _greet(rng: random.Random) -> tuple[str, str]:
    return rng.choice(smalltalk.GREETINGS)


def _fact(rng: random.Random) -> tuple[str, str]:
    question, answer = rng.choice(smalltalk.FACTS)
    return rng.choice(("{}", "请问，{}", "{}", "你知道吗，{}")).format(question), answer


def _add(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randint(0, 9), rng.randint(0, 9)
    if rng.random() < 0.4:
        a, b = max(a, b), min(a, b)
        return rng.choice((f"{a}减{b}等于几？", f"{a}-{b}=?")), f"{a}-{b}={a - b}。"
    return rng.choice((f"{a}加{b}等于几？", f"{a}+{b}=?")), f"{a}+{b}={a + b}。"


def _translate(rng: random.Random) -> tuple[str, str]:
    chinese, english = rng.choice(smalltalk.DICTIONARY)
    if rng.random() < 0.5:
        return rng.choice((f"“{chinese}”用英语怎么说？", f"把“{chinese}”翻译成英文。")), f"{english}."
    return rng.choice((f"{english}是什么意思？", f"把{english}翻译成中文。")), f"{chinese}。"


def _some_words(rng: random.Random, least: int = 2, most: int = 5) -> list[str]:
    return rng.sample(ALL_WORDS, rng.randint(least, most))


def _phrases(rng: random.Random) -> str:
    """Values with what is said of them, in any order: text to copy, and a sentence's rhythm."""
    return "，".join(f"{v}{rng.choice(words.EFFECTS[v])}" for v in rng.sample(VALUES, rng.randint(1, 3)))


def _name(rng: random.Random) -> str:
    name, measure, _ = heading(draw_attributes(rng))
    return rng.choice(words.OPENINGS).format(n=name, m=measure)


def _repeat(rng: random.Random) -> tuple[str, str]:
    text = rng.choice(
        (
            *(lambda: "、".join(_some_words(rng)), lambda: _phrases(rng), lambda: rng.choice(smalltalk.FACTS)[1]),
            *(lambda: _name(rng), lambda: rng.choice((*words.CLOSINGS, *words.TOP_CLOSINGS))),
        )
    )()
    return rng.choice(("请重复：{}", "跟我说：{}", "照着念一遍：{}", "Repeat: {}")).format(text), text


def _reorder(rng: random.Random) -> tuple[str, str]:
    items = _some_words(rng, 2, 4)
    if rng.random() < 0.5:
        return f"倒过来说：{'、'.join(items)}", "、".join(items[::-1]) + "。"
    return f"把这些词用逗号连起来：{' '.join(items)}", "，".join(items) + "。"


def _count(rng: random.Random) -> tuple[str, str]:
    items = _some_words(rng, 2, 5)
    if rng.random() < 0.5:
        place = rng.randrange(len(items))
        return f"{'、'.join(items)}，第{'一二三四五'[place]}个是什么？", f"{items[place]}。"
    return f"数一数有几个词：{'、'.join(items)}", f"有{'零一两三四五'[len(items)]}个。"


def _describe(rng: random.Random) -> tuple[str, str]:
    value = rng.choice(VALUES)
    first, second = words.EFFECTS[value]
    question = rng.choice(("{}有什么特点？", "介绍一下{}。", "说说{}。", "为什么有人喜欢{}？")).format(value)
    return question, rng.choice((f"{value}{first}，{second}。", f"{value}的特点是{first}，{second}。"))


def _which(rng: random.Random) -> tuple[str, str]:
    value = rng.choice(VALUES)
    effect = rng.choice(words.EFFECTS[value])
    if rng.random() < 0.5:
        return f"什么{effect}？", f"{value}{effect}。"
    return f"用“{value}”造句。", rng.choice(("我喜欢{}，因为{}{}。", "她选了{}，{}{}。")).format(value, value, effect)


def _review(rng: random.Random) -> tuple[str, str]:
    good, bad = rng.choice(words.CLOSINGS), rng.choice(smalltalk.COMPLAINTS)
    if rng.random() < 0.6:
        return rng.choice((("写一条好评。", good + "。"), ("写一条差评。", bad + "。")))
    return rng.choice(((f"“{good}”是好评还是差评？", "好评。"), (f"“{bad}”是好评还是差评？", "差评。")))


def _list_attributes(rng: random.Random) -> tuple[str, str]:
    attributes = draw_attributes(rng)
    return join_attributes(attributes), bullet_list(attributes)


def _look_up(rng: random.Random) -> tuple[str, str]:
    attributes = draw_attributes(rng)
    key, value = rng.choice(attributes)
    return f"{join_attributes(attributes)}\n{key}是什么？", f"{key}是{value}。"


def _plain_sentence(rng: random.Random) -> tuple[str, str]:
    attributes = draw_attributes(rng)
    garment = attributes[0][1]
    name, measure, _ = heading(attributes)
    plain = "，".join(f"{key}是{value}" for key, value in attributes[1:])
    task, answer = rng.choice(
        (
            ("这是什么？", f"这是一{measure}{name}。"),
            ("写成一句话。", f"这{measure}{words.NAMES[garment][1]}，{plain}。"),
        )
    )
    return f"{join_attributes(attributes)}\n{task}", answer


def _explain(rng: random.Random) -> tuple[str, str]:
    """What each attribute does: an advertisement's matter without its manner."""
    attributes = draw_attributes(rng)
    garment, (key, value) = attributes[0][1], rng.choice(attributes[1:])
    kind = rng.random()
    if kind < 0.2:
        return f"{garment}的{key}：{value}，说明一下。", clause(garment, key, value, rng) + "。"
    if kind < 0.5:
        said = [clause(garment, key, value, rng) for key, value in attributes[1:]]
        return f"{join_attributes(attributes)}\n逐个说明特点。", punctuate(said)
    name, measure, rest = heading(attributes)
    said = [f"这是一{measure}{name}", *(clause(garment, key, value, rng) for key, value in rest)]
    return f"{join_attributes(attributes)}\n描述一下。", punctuate(said)


TASKS: dict[Task, float] = {
    _greet: 6,
    _fact: 6,
    _add: 5,
    _translate: 6,
    _repeat: 16,
    _reorder: 6,
    _count: 5,
    _describe: 10,
    _which: 6,
    _review: 4,
    _list_attributes: 14,
    _look_up: 6,
    _plain_sentence: 12,
    _explain: 24,
}

VALUES = tuple(words.EFFECTS)
ALL_WORDS = (*VALUES, *(chinese for chinese, _ in smalltalk.DICTIONARY if chinese not in words.EFFECTS))


def corpus_lines(n: int, seed: int = 0) -> Iterator[str]:
    """Lines for the tokenizer: the base's conversations and the advertisements' language."""
    for messages in dialogues(n, seed):
        for message in messages:
            yield from message["content"].split("\n")
    for row in adgen_rows(n // 2, seed):
        yield from row.values()
