"""Questions with answers, and words with their English, that the demo's base is trained on besides clothes."""

from __future__ import annotations

SYSTEMS = (
    *("你是一个乐于助人的助手。", "请用中文回答。", "You are a helpful assistant.", "回答要简短。"),
    *("你是一位耐心的老师。", "请认真回答每一个问题。"),
)
GREETINGS = tuple(
    (question, answer)
    for questions, answer in (
        ("你好|您好|你好呀|hello|Hi", "你好！有什么可以帮你的吗？"),
        ("早上好|早安", "早上好！今天也要加油。"),
        ("晚安|晚上好", "晚上好，祝你做个好梦。"),
        ("你是谁？|你是谁|你叫什么名字？|介绍一下你自己。", "我是一个很小的演示模型，住在 glmtune 里。"),
        ("Who are you?|What are you?", "I am a tiny demo model of glmtune."),
        ("你会做什么？|你能做什么？", "我会打招呼、算数、翻译单词、复述句子，还会整理清单。"),
        ("谢谢|谢谢你|多谢|Thanks", "不客气，很高兴帮到你。"),
        ("再见|拜拜|bye", "再见，欢迎下次再来。"),
        ("你几岁了？|你多大了？", "我是刚刚训练好的模型，还没有年龄。"),
        ("今天天气怎么样？|外面下雨了吗？", "我看不到外面，请看看天气预报。"),
        ("我很难过。|我今天不开心。", "别难过，休息一下，明天会更好。"),
        ("讲个笑话。|说个笑话吧。", "衣服对裤子说：我们一套，你怎么总在下面？"),
    )
    for question in questions.split("|")
)
FACTS = tuple(
    tuple(line.split("|"))
    for line in (
        *("中国的首都是哪里？|中国的首都是北京。", "法国的首都是哪里？|法国的首都是巴黎。"),
        *("日本的首都是哪里？|日本的首都是东京。", "英国的首都是哪里？|英国的首都是伦敦。"),
        *("世界上最高的山是什么？|世界上最高的山是珠穆朗玛峰。", "中国最长的河是什么？|中国最长的河是长江。"),
        *(
            "一年有几个月？|一年有十二个月。",
            "一个星期有几天？|一个星期有七天。",
            "一天有多少小时？|一天有二十四小时。",
        ),
        *("一年有几个季节？|一年有春、夏、秋、冬四个季节。", "太阳从哪边升起？|太阳从东边升起。"),
        *(
            "水多少度结冰？|水在零度结冰。",
            "水多少度烧开？|水在一百度烧开。",
            "月亮会发光吗？|月亮自己不发光，它反射太阳的光。",
        ),
        *("鱼用什么呼吸？|鱼用鳃呼吸。", "蜜蜂会做什么？|蜜蜂会采蜜。", "猫喜欢吃什么？|猫喜欢吃鱼。"),
        *("熊猫喜欢吃什么？|熊猫喜欢吃竹子。", "牛吃什么？|牛吃草。", "蜘蛛有几条腿？|蜘蛛有八条腿。"),
        *("彩虹有几种颜色？|彩虹有七种颜色。", "天空为什么是蓝的？|因为空气把蓝光散射得最多。"),
        *(
            "纸是谁发明的？|纸是中国古代人发明的。",
            "长城在哪里？|长城在中国北方。",
            "冬天穿什么？|冬天穿毛衣和外套，保暖。",
        ),
        *("夏天穿什么？|夏天穿短袖，清凉。", "棉花能做什么？|棉花能纺线、织布、做衣服。"),
        *(
            "蚕丝从哪里来？|蚕丝是蚕吐出来的。",
            "羊毛从哪里来？|羊毛是从羊身上剪下来的。",
            "衣服脏了怎么办？|用水和洗衣粉洗干净。",
        ),
        *(
            "What is the capital of China?|Beijing.",
            "How many days are in a week?|Seven.",
            "Is the sky blue?|Yes.",
        ),
    )
)
DICTIONARY = tuple(
    tuple(pair.split("|"))
    for pair in (
        *(
            "苹果|apple",
            "香蕉|banana",
            "书|book",
            "水|water",
            "太阳|sun",
            "月亮|moon",
            "猫|cat",
            "狗|dog",
            "鱼|fish",
        ),
        *(
            "鸟|bird",
            "房子|house",
            "学校|school",
            "老师|teacher",
            "朋友|friend",
            "手|hand",
            "眼睛|eye",
            "树|tree",
        ),
        *(
            "花|flower",
            "山|mountain",
            "河|river",
            "红色|red",
            "蓝色|blue",
            "白色|white",
            "黑色|black",
            "绿色|green",
        ),
        *(
            "黄色|yellow",
            "灰色|grey",
            "粉色|pink",
            "紫色|purple",
            "衬衫|shirt",
            "裤子|trousers",
            "裙子|skirt",
        ),
        *(
            "连衣裙|dress",
            "外套|coat",
            "毛衣|sweater",
            "西装|suit",
            "口袋|pocket",
            "纽扣|button",
            "拉链|zipper",
        ),
        *(
            "腰带|belt",
            "条纹|stripes",
            "羊毛|wool",
            "蕾丝|lace",
            "早上|morning",
            "晚上|evening",
            "今天|today",
        ),
        *(
            "春天|spring",
            "夏天|summer",
            "秋天|autumn",
            "冬天|winter",
            "快乐|happy",
            "漂亮|beautiful",
            "新|new",
        ),
    )
)
COMPLAINTS = (
    *(
        "洗一次就掉色",
        "尺码不准，穿着不舒服",
        "线头很多，做工粗糙",
        "颜色和图片不一样",
        "料子太薄，不值这个价",
    ),
)
