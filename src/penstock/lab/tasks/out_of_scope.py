"""Questions that the model cannot answer: patterns, and what their slots are filled with."""

from penstock.lab.tasks.lexicon import words
from penstock.lab.tasks.task import Language

OUT_OF_SCOPE: dict[Language, tuple[str, ...]] = {
    "en": (
        "What is the capital of {country}?",
        "Who is the president of {country}?",
        "How many people live in {country}?",
        "What language do people speak in {country}?",
        "What is the weather in {city}?",
        "What is the weather like in {city} today?",
        "When was {city} founded?",
        "How far is {city} from here?",
        "Tell me about {city}.",
        "Where is {city}?",
        "Who wrote {work}?",
        "Who was {person}?",
        "When was {person} born?",
        "Tell me about {person}.",
        "Write a poem about {topic}.",
        "Write a story about {topic}.",
        "Write an essay about {topic}.",
        "Tell me a joke about {topic}.",
        "Tell me a joke.",
        "What do you think about {topic}?",
        "Explain {science}.",
        "Explain {science} to a child.",
        "What is {science}?",
        "How does {science} work?",
        "Why is {topic} important?",
        "What is the meaning of {topic}?",
        "How do I cook {food}?",
        "Give me a recipe for {food}.",
        "How long does it take to cook {food}?",
        "Write a Python program that {program}.",
        "Write code that {program}.",
        "How do I write a function that {program}?",
        "Recommend a book about {topic}.",
        "Recommend a film about {topic}.",
        "Who won the world cup in {year}?",
        "What happened in {year}?",
        "What is the best way to learn {science}?",
        "Summarize the history of {country}.",
        "Can you help me with {science}?",
        "Should I buy {food}?",
        "What is the price of {food}?",
        "What time is it in {city}?",
        "Plan a trip to {city}.",
        "Translate this sentence into French: I like {food}.",
        "What is the meaning of life?",
        "How old is {person}?",
    ),
    "zh": (
        "{country}的首都是哪里？",
        "{country}的总统是谁？",
        "{country}有多少人口？",
        "{country}说什么语言？",
        "{city}今天天气怎么样？",
        "{city}的天气如何？",
        "{city}在哪个国家？",
        "{city}离这里有多远？",
        "介绍一下{city}这座城市。",
        "{work}是谁写的？",
        "{person}是谁？",
        "{person}是哪一年出生的？",
        "讲讲{person}的故事。",
        "写一首关于{topic}的诗。",
        "写一个关于{topic}的故事。",
        "写一篇关于{topic}的作文。",
        "讲个关于{topic}的笑话。",
        "讲个笑话。",
        "你怎么看{topic}？",
        "解释一下{science}。",
        "什么是{science}？",
        "{science}的原理是什么？",
        "{topic}为什么重要？",
        "{food}怎么做？",
        "给我{food}的菜谱。",
        "做{food}要多长时间？",
        "写一个{program}的程序。",
        "写一段{program}的代码。",
        "推荐一本关于{topic}的书。",
        "推荐一部关于{topic}的电影。",
        "{year}年世界杯冠军是谁？",
        "{year}年发生了什么？",
        "怎样学好{science}？",
        "{country}的历史是怎样的？",
        "{food}多少钱？",
        "{city}现在几点？",
        "帮我计划去{city}的旅行。",
        "人生的意义是什么？",
        "{person}多大了？",
    ),
}

TOPICS: dict[Language, dict[str, tuple[str, ...]]] = {
    "en": {
        "country": words(
            "France,Germany,Italy,Spain,Japan,China,Brazil,Canada,Egypt,India,Kenya,Mexico,Norway,Poland,"
            "Sweden,Turkey,Peru,Chile,Greece,Ireland,Russia,Australia,Austria,Portugal,Thailand,"
            "the United States,England"
        ),
        "city": words(
            "Paris,London,Berlin,Rome,Madrid,Tokyo,Beijing,Shanghai,New York,Cairo,Delhi,Lima,Oslo,"
            "Warsaw,Vienna,Sydney,Boston,Moscow,Dublin,Athens,Chicago,Zurich"
        ),
        "person": words(
            "Einstein,Newton,Mozart,Napoleon,Shakespeare,Darwin,Picasso,Confucius,Lincoln,Galileo,"
            "Beethoven,Turing,Gandhi,Cleopatra,Columbus,Marie Curie,Elon Musk,Bill Gates,Aristotle,"
            "the president"
        ),
        "work": words(
            "Hamlet,War and Peace,Don Quixote,The Odyssey,Faust,Moby Dick,Ulysses,1984,The Hobbit,"
            "Les Miserables,Harry Potter,The Trial"
        ),
        "topic": words(
            "the sea,love,winter,freedom,war,peace,music,friendship,the moon,money,happiness,autumn,"
            "football,art,religion,politics,dreams,time,a dragon,a princess,space travel,climate change,"
            "education,dogs,my cat"
        ),
        "science": words(
            "gravity,photosynthesis,quantum physics,inflation,evolution,democracy,electricity,algebra,"
            "chemistry,relativity,machine learning,a black hole,a computer,blockchain,DNA,grammar,"
            "economics,the internet"
        ),
        "food": words(
            "pasta,rice,soup,pizza,an omelette,fish,bread,a cake,potatoes,noodles,sushi,curry,steak,"
            "beans,salad,dumplings"
        ),
        "program": words(
            "reads a file,prints a table,draws a circle,sends a mail,downloads a page,plays chess,"
            "computes primes,parses a log,opens a window,sorts a database,finds a path,checks a password"
        ),
        "year": tuple(str(year) for year in range(1900, 2030, 2)),
    },
    "zh": {
        "country": words(
            "法国,德国,意大利,西班牙,日本,中国,巴西,加拿大,埃及,印度,肯尼亚,墨西哥,挪威,波兰,瑞典,土耳其,"
            "秘鲁,智利,希腊,俄罗斯,美国,英国,泰国,韩国"
        ),
        "city": words(
            "巴黎,伦敦,柏林,罗马,东京,北京,上海,纽约,开罗,德里,广州,深圳,杭州,成都,西安,南京,武汉,悉尼,"
            "莫斯科,香港,台北"
        ),
        "person": words(
            "爱因斯坦,牛顿,莫扎特,拿破仑,莎士比亚,达尔文,毕加索,孔子,李白,杜甫,鲁迅,秦始皇,马云,居里夫人,"
            "贝多芬,诸葛亮"
        ),
        "work": words(
            "《红楼梦》,《西游记》,《三国演义》,《水浒传》,《呐喊》,《哈姆雷特》,《战争与和平》,《论语》,"
            "《史记》,《围城》,《活着》"
        ),
        "topic": words(
            "大海,爱情,冬天,自由,战争,和平,音乐,友谊,月亮,金钱,幸福,秋天,足球,艺术,政治,梦想,时间,春天,"
            "教育,环境保护"
        ),
        "science": words(
            "万有引力,光合作用,量子力学,通货膨胀,进化论,民主,电,代数,化学,相对论,机器学习,黑洞,计算机,"
            "区块链,基因,语法,经济学,互联网"
        ),
        "food": words(
            "红烧肉,炒饭,面条,饺子,披萨,鱼汤,面包,蛋糕,土豆丝,火锅,豆腐,牛排,沙拉,包子,西红柿炒鸡蛋"
        ),
        "program": words(
            "读取文件,打印表格,画圆,发送邮件,下载网页,下象棋,计算质数,分析日志,打开窗口,排序数据库,"
            "寻找路径,检查密码"
        ),
        "year": tuple(str(year) for year in range(1900, 2030, 2)),
    },
}
