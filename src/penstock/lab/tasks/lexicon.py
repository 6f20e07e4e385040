"""Words that the tasks are made of, in both languages, and invented words that no list contains."""

from penstock.lab.tasks.task import Language, Random


def words(text: str) -> tuple[str, ...]:
    """The entries of a comma-separated text: long word lists stay readable that way."""
    return tuple(text.split(","))


# English and Chinese stand pairwise: the dictionary family asks for one from the other.
_PAIRS = (
    "apple:苹果 pear:梨 grape:葡萄 peach:桃子 lemon:柠檬 banana:香蕉 orange:橙子 cherry:樱桃 "
    "melon:西瓜 cat:猫 dog:狗 horse:马 cow:牛 sheep:羊 pig:猪 bird:鸟 fish:鱼 tiger:老虎 "
    "lion:狮子 rabbit:兔子 monkey:猴子 elephant:大象 snake:蛇 duck:鸭子 chicken:鸡 frog:青蛙 "
    "bear:熊 wolf:狼 red:红色 blue:蓝色 green:绿色 yellow:黄色 black:黑色 white:白色 book:书 "
    "pen:钢笔 table:桌子 chair:椅子 door:门 window:窗户 house:房子 bed:床 lamp:灯 clock:钟 "
    "cup:杯子 key:钥匙 phone:电话 bag:包 shoe:鞋 hat:帽子 shirt:衬衫 umbrella:雨伞 box:盒子 "
    "knife:刀 spoon:勺子 car:汽车 train:火车 plane:飞机 ship:船 bus:公共汽车 bicycle:自行车 "
    "road:路 bridge:桥 water:水 milk:牛奶 tea:茶 coffee:咖啡 rice:米饭 bread:面包 egg:鸡蛋 "
    "meat:肉 sugar:糖 salt:盐 cake:蛋糕 sun:太阳 moon:月亮 star:星星 sky:天空 cloud:云 rain:雨 "
    "snow:雪 wind:风 fire:火 tree:树 flower:花 mountain:山 river:河 sea:海 stone:石头 grass:草 "
    "forest:森林 lake:湖 school:学校 hospital:医院 city:城市 teacher:老师 doctor:医生 "
    "student:学生 friend:朋友 mother:母亲 father:父亲 brother:兄弟 sister:姐妹 child:孩子 "
    "hand:手 foot:脚 head:头 eye:眼睛 nose:鼻子 mouth:嘴 ear:耳朵"
)
DICTIONARY: tuple[tuple[str, str], ...] = tuple(
    (english, chinese) for english, chinese in (pair.split(":") for pair in _PAIRS.split(" "))
)

# Nouns that can stand in a list or be owned; the dictionary's own, so that every word is well seen.
NOUNS: dict[Language, tuple[str, ...]] = {
    "en": tuple(pair[0] for pair in DICTIONARY),
    "zh": tuple(pair[1] for pair in DICTIONARY),
}

COLOURS: dict[Language, tuple[str, ...]] = {
    "en": ("red", "blue", "green", "yellow", "black", "white", "brown", "grey", "pink", "purple", "orange"),
    "zh": ("红色", "蓝色", "绿色", "黄色", "黑色", "白色", "棕色", "灰色", "粉色", "紫色", "橙色"),
}

THINGS: dict[Language, tuple[str, ...]] = {
    "en": words(
        "book,pen,table,chair,door,window,house,bed,lamp,clock,cup,key,phone,bag,shoe,hat,shirt,"
        "umbrella,box,knife,spoon,car,train,plane,ship,bus,bicycle,flower,cat,dog,horse,bird"
    ),
    "zh": words(
        "书,钢笔,桌子,椅子,门,窗户,房子,床,灯,钟,杯子,钥匙,电话,包,鞋,帽子,衬衫,雨伞,盒子,刀,勺子,"
        "汽车,火车,飞机,船,公共汽车,自行车,花,猫,狗,马,鸟"
    ),
}

NAMES: dict[Language, tuple[str, ...]] = {
    "en": words(
        "Anna,Ben,Clara,David,Emma,Frank,Grace,Henry,Iris,Jack,Kate,Leo,Maria,Nick,Olga,Paul,Rosa,"
        "Sam,Tina,Victor,Wendy,Alice,Bob,Carol,Daniel,Eva,Fiona,George,Helen,Ivan,Julia,Kevin,Laura,"
        "Mark,Nora,Oscar,Peter,Rita,Simon,Tom,Ursula,Vera,Walter,Zoe,Lucy,Max,Mia,Noah,Ella,Liam"
    ),
    "zh": words(
        "小明,小红,小刚,小丽,小华,小芳,小强,小军,小玲,小杰,李雷,韩梅,王伟,王芳,李娜,张伟,张敏,刘洋,"
        "刘婷,陈静,陈晨,杨帆,赵磊,黄丽,周杰,吴刚,徐静,孙悦,马超,朱莉,林涛,何洁,高山,梁宇,宋佳,唐宁,"
        "许诺,邓超,冯雪,曹阳"
    ),
}

PLACES: dict[Language, tuple[str, ...]] = {
    "en": words("kitchen,garden,office,garage,bedroom,bathroom,hall,cellar,attic,library"),
    "zh": words("厨房,花园,办公室,车库,卧室,浴室,大厅,地下室,阁楼,图书馆"),
}

_ONSETS = words("b,c,d,f,g,h,j,k,l,m,n,p,r,s,t,v,w,z,br,ch,cl,dr,fl,gr,pl,sh,st,th,tr")
_VOWELS = words("a,e,i,o,u,a,e,i,o,ai,ee,oo,ou")
_CODAS = ("", "", "", "n", "r", "s", "l", "t", "k", "m", "x", "nd", "st")
# Characters for invented Chinese words and names; common ones, so that the vocabulary has them.
COMMON_CHARACTERS = (
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所"
    "然家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与"
    "长把机十民第公此已工使情明性知全三又关点正业外将两高间由问很最重并物手应战向头文体政美相见被利什二等产或新己"
    "制身果加西斯月话合回特代内信表化老给世位次度门任常先海通教儿原东声提立及比员解水名真论处走义各入几口认条平系"
    "气题活尔更别打女变四神总何电数安少报才结反受目太量再感建务做接必场件计管期市直德资命山金指克许统区保至队形社"
    "便空决治展马科司五基眼书非则听白却界达光放强即像难且权思王象完设式色路记南品住告类求据程北边死张该交规万取拉"
    "格望觉术领共确传师观清今切院让识候带导争运笔黑红蓝绿星雨雪风云花草树木石火土田林江河湖春夏秋冬早晚左右父母"
)


def invented_word(rng: Random, language: Language) -> str:
    """A word that means nothing: two syllables in English, two characters in Chinese."""
    if language == "zh":
        return rng.choice(COMMON_CHARACTERS) + rng.choice(COMMON_CHARACTERS)
    return "".join(
        rng.choice(_ONSETS) + rng.choice(_VOWELS) + rng.choice(_CODAS)
        for _ in range(rng.choice((1, 2, 2, 3)))
    )


def distinct_words(rng: Random, language: Language, count: int) -> list[str]:
    """`count` different words: known nouns, and in one list of seven also invented ones."""
    invented = rng.random() < 0.15
    words: list[str] = []
    while len(words) < count:
        word = (
            invented_word(rng, language) if invented and rng.random() < 0.5 else rng.choice(NOUNS[language])
        )
        if word not in words:
            words.append(word)
    return words


def listing(words: list[str], language: Language) -> str:
    """The words as a list in running text: ", " between them in English, "、" in Chinese."""
    return (", " if language == "en" else "、").join(words)
