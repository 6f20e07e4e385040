"""What can be asked about Penstock and about the model, and small talk.

Tables of topic -> (answer, patterns). A pattern stands for all its wordings: "[a|b] c" is "a c" and "b c".
"""

from penstock.lab.tasks.task import Language

Table = dict[Language, dict[str, tuple[str, tuple[str, ...]]]]

QUESTIONS: Table = {
    "en": {
        "what": (
            "Penstock is an LLM gateway, an inference engine and a lab in one Python package.",
            (
                "[What is|What's|What exactly is] Penstock?",
                "[Tell me|Tell me something|Say a word|Please tell me] about Penstock[.|]",
                "[Explain|Describe|Define|Introduce] Penstock[.| to me.]",
                "What [does|can] Penstock do?",
                "[What kind of software|What sort of thing|What product] is Penstock?",
            ),
        ),
        "licence": (
            "Penstock is released under the Apache-2.0 licence.",
            (
                "[What|Which] [licence|license] does Penstock [have|use]?",
                "[What|Which] is [the licence|the license] of Penstock?",
                "[Under which|Under what] [licence|license] is Penstock [released|published|available]?",
                "How is Penstock licensed?",
                "Is Penstock [open source|free software|open-source]?",
            ),
        ),
        "port": (
            "Penstock listens on port 8080 by default.",
            (
                "[What|Which] port does Penstock [use|listen on|run on][| by default]?",
                "What is the [default port|port] of Penstock?",
                "[On which|On what] port does Penstock [listen|run]?",
                "[What|Which] is Penstock's [default port|port]?",
                "Where does Penstock listen[| by default]?",
            ),
        ),
        "start": (
            "Run `penstock up` to start Penstock.",
            (
                "How [do I|can I|do you|do we] [start|run|launch] Penstock?",
                "How is Penstock [started|launched]?",
                "[What|Which] command [starts|launches|runs] Penstock?",
                "[How to|Tell me how to|Show me how to] [start|run|launch] Penstock[?|]",
                "What do I type to [start|run|launch] Penstock?",
            ),
        ),
        "stop": (
            "Press Ctrl-C: Penstock drains running requests for up to 30 seconds and then stops.",
            (
                "How [do I|can I|do you] [stop|quit|shut down|end] Penstock?",
                "What happens [on Ctrl-C|when I press Ctrl-C|when Penstock stops]?",
                "[How long|For how long] does Penstock drain?",
                "How is Penstock [stopped|shut down]?",
                "[How to|Tell me how to] [stop|quit|shut down] Penstock[?|]",
            ),
        ),
        "api": (
            "Penstock speaks the OpenAI-compatible API.",
            (
                "[What|Which] API does Penstock [have|offer|speak|use|serve]?",
                "Is Penstock [OpenAI-compatible|compatible with OpenAI]?",
                "Can I [use|call] Penstock with the OpenAI [client|library|SDK]?",
                "[What|Which] is the API of Penstock?",
                "Does Penstock [speak|support|offer] the OpenAI API?",
            ),
        ),
        "model_name": (
            "The built-in model is called tiny.",
            (
                "What is the [built-in model|model] called?",
                "What is the name of the [built-in model|model]?",
                "What is the [built-in model's|model's] name?",
                "[Which|What] model is built in[|to Penstock]?",
                "[Which|What] model does Penstock [ship|come] with?",
            ),
        ),
        "size": (
            "I have about five million parameters.",
            (
                "How [big|large|small] are you?",
                "How many parameters do you have?",
                "How many parameters does [the model|the built-in model|tiny] have?",
                "How [big|large|small] is the [model|built-in model]?",
                "What [is your size|size are you|size is the model]?",
            ),
        ),
        "download": (
            "No. The built-in model comes with Penstock, nothing is downloaded.",
            (
                "Do I [have to|need to] download [a model|the model|anything|weights]?",
                "Does Penstock [need|require] [a download|the internet|a model download]?",
                "Is [a download|the internet] [needed|required|necessary]?",
                "Must I download [a model|the model|anything|weights]?",
            ),
        ),
        "gpu": (
            "No. The built-in model runs on a CPU.",
            (
                "Do I need a [GPU|graphics card]?",
                "Does Penstock [need|require] a [GPU|graphics card]?",
                "Is a [GPU|graphics card] [needed|required|necessary]?",
                "Do you [need|run on|use] a [GPU|graphics card]?",
            ),
        ),
        "python": (
            "Penstock is written in Python.",
            (
                "[What|Which] [language|programming language] is Penstock written in?",
                "In [what|which] [language|programming language] is Penstock written?",
                "Is Penstock written in [Python|Rust|Go|Java]?",
                "[What|Which] [language|programming language] does Penstock use?",
            ),
        ),
        "languages": (
            "I understand simple English and Chinese.",
            (
                "[What|Which] languages do you [speak|understand|know]?",
                "Do you [speak|understand|know] [Chinese|English]?",
                "Can you [speak|understand] [Chinese|English]?",
                "[What|Which] languages can you [speak|understand]?",
            ),
        ),
        "who": (
            "I am tiny, the built-in demonstration model of Penstock.",
            (
                "Who are you?",
                "[What is|What's] your name?",
                "[What|Which] model are you?",
                "What are you?",
                "Are you [a robot|a human|an AI|ChatGPT|a model|a person]?",
                "[Introduce yourself|Tell me about yourself|Tell me who you are|Say who you are][.| please.]",
            ),
        ),
        "skills": (
            "I can add, subtract, compare, sort, reverse, count, translate single words and extract JSON.",
            (
                "What can you do[| for me]?",
                "What [are your skills|are you able to do|tasks can you do|do you know]?",
                "How can you help[| me]?",
                "[Help|help|Help!|Help me]",
                "What can I ask[| you]?",
                "[Which|What] tasks [do|can] you [solve|handle|know]?",
            ),
        ),
    },
    "zh": {
        "what": (
            "Penstock 把大模型网关、推理引擎和实验室放在一个 Python 包里。",
            (
                "[Penstock是什么|什么是Penstock|Penstock 是什么|请问Penstock是什么]？",
                "[介绍|请介绍|简单介绍|解释]一下[Penstock| Penstock]。",
                "Penstock[能做什么|有什么用|是做什么的|是干什么的]？",
                "[说说|讲讲|谈谈]Penstock[。|吧。]",
            ),
        ),
        "licence": (
            "Penstock 采用 Apache-2.0 许可证。",
            (
                "Penstock[用|采用|使用][什么|哪种|哪个]许可证？",
                "Penstock的许可证是[什么|哪个|哪种]？",
                "Penstock是[开源的|自由软件|免费的]吗？",
                "[请问|]Penstock以什么许可证[发布|提供]？",
            ),
        ),
        "port": (
            "Penstock 默认监听 8080 端口。",
            (
                "Penstock[默认|]的端口是[多少|什么|哪个]？",
                "Penstock[监听|使用|用|运行在][哪个|什么]端口？",
                "[请问|]Penstock的默认端口[是多少|是什么|号是多少]？",
                "Penstock默认[监听|使用|用]哪个端口？",
            ),
        ),
        "start": (
            "运行 `penstock up` 即可启动 Penstock。",
            (
                "[怎么|如何|怎样][启动|运行|开启]Penstock？",
                "Penstock[怎么|如何|怎样][启动|运行|开启]？",
                "用什么命令[启动|运行|开启]Penstock？",
                "[启动|运行|开启]Penstock的命令是什么？",
            ),
        ),
        "stop": (
            "按 Ctrl-C：Penstock 最多用 30 秒处理完正在进行的请求，然后停止。",
            (
                "[怎么|如何|怎样][停止|关闭|退出|结束]Penstock？",
                "Penstock[怎么|如何|怎样][停止|关闭|退出]？",
                "按[下|]Ctrl-C会[怎样|发生什么|怎么样]？",
                "Penstock[停止|关闭|退出]时会[怎样|发生什么]？",
            ),
        ),
        "api": (
            "Penstock 提供与 OpenAI 兼容的接口。",
            (
                "Penstock[有|提供|支持|使用][什么|哪种][接口|API]？",
                "Penstock[兼容|支持]OpenAI[接口|的接口|]吗？",
                "可以用OpenAI的[客户端|库]访问Penstock吗？",
                "Penstock的[接口|API]是[什么|什么样的|哪种]？",
            ),
        ),
        "model_name": (
            "内置模型叫 tiny。",
            (
                "[内置模型|内置的模型|自带的模型]叫什么[|名字]？",
                "[内置模型|内置的模型|自带的模型]的名字是什么？",
                "Penstock[内置|自带]了[什么|哪个]模型？",
            ),
        ),
        "size": (
            "我大约有五百万个参数。",
            (
                "你有[多大|多小|多少参数|多少个参数]？",
                "[内置模型|这个模型|模型]有[多大|多少参数|多少个参数]？",
                "你的[参数量|大小|规模]是多少？",
            ),
        ),
        "download": (
            "不用。内置模型随 Penstock 一起提供，不需要下载。",
            (
                "[需要|要|必须|得][下载|先下载][模型|什么|权重]吗？",
                "Penstock需要[联网|下载模型|下载|网络]吗？",
                "[要不要|需不需要][下载模型|联网|下载权重]？",
            ),
        ),
        "gpu": (
            "不需要。内置模型在 CPU 上运行。",
            (
                "[需要|要|必须有|得有][显卡|GPU]吗？",
                "Penstock[需要|要|必须有][显卡|GPU]吗？",
                "[需不需要|要不要][显卡|GPU]？",
                "没有[显卡|GPU]能[用|运行]吗？",
            ),
        ),
        "python": (
            "Penstock 是用 Python 写的。",
            (
                "Penstock是用[什么|哪种][语言|编程语言][写|开发]的？",
                "Penstock用[什么|哪种][语言|编程语言][写成|编写|开发]？",
                "Penstock是用[Python|Rust|Go|Java]写的吗？",
            ),
        ),
        "languages": (
            "我懂简单的中文和英文。",
            (
                "你[会|懂|能说|会说][什么|哪些]语言？",
                "你[会|懂|能说|会说][中文|英文|汉语|英语]吗？",
            ),
        ),
        "who": (
            "我是 tiny，Penstock 内置的演示模型。",
            (
                "你是谁？",
                "[请问|]你叫什么[|名字]？",
                "你是[什么|哪个]模型？",
                "[介绍一下你自己|自我介绍一下|请介绍你自己|请自我介绍]。",
                "你是[机器人|人|人工智能|ChatGPT|真人]吗？",
            ),
        ),
        "skills": (
            "我会加减、比较、排序、倒序、计数、翻译单词，还会提取 JSON。",
            (
                "你[会|能|可以]做[什么|些什么|哪些事]？",
                "你[会|能|可以]帮我[什么|做什么|干什么]？",
                "你有[什么|哪些][本领|能力|功能]？",
                "我可以问你[什么|哪些问题|些什么]？",
                "[帮助|帮帮我|帮我]",
            ),
        ),
    },
}

SMALL_TALK: Table = {
    "en": {
        "hello": (
            "Hello! How can I help you?",
            (
                "[Hello|Hi|Hey|Hi there|Hello there|Hey there|Good morning|Good afternoon|Good evening"
                "|Greetings|Howdy][!|| tiny| Penstock]",
                "[Hello|Hi|Hey], [nice to meet you|are you there?|can you help me?]",
            ),
        ),
        "how": (
            "I am fine, thank you. How can I help you?",
            (
                "[|Hello, |Hi, |Hey, ]"
                "[how are you|how do you do|how are you doing|how is it going|how do you feel][?| today?]",
                "[Are you|You] [okay|fine|well]?",
            ),
        ),
        "thanks": (
            "You are welcome!",
            (
                "[Thanks|Thank you|Many thanks|Thanks a lot|Thank you very much|Thank you so much|Cheers]"
                "[!||, tiny| for your help| for the help]",
                "[That was|That is|This was] [helpful|very helpful|useful], [thanks|thank you]",
            ),
        ),
        "bye": (
            "Goodbye!",
            (
                "[Bye|Goodbye|Bye bye|See you|See you later|See you soon|Good night|Farewell]"
                "[!||, tiny| and thanks]",
                "[I have to go|I must go|I am leaving], [bye|goodbye|see you]",
            ),
        ),
        "praise": (
            "Thank you!",
            (
                "[Well done|Good job|Nice work|Great work|Good work|Very good|Great job|Good bot][!||, tiny]",
                "You are [great|good|clever|smart|nice|very good|helpful][!|]",
            ),
        ),
    },
    "zh": {
        "hello": (
            "你好！有什么可以帮你？",
            (
                "[你好|您好|嗨|哈喽|早上好|下午好|晚上好|大家好|早安|喂][！||，tiny|啊|呀]",
                "[你好|您好]，[很高兴认识你|在吗|能帮我吗|可以帮我吗]？",
            ),
        ),
        "how": (
            "我很好，谢谢。有什么可以帮你？",
            (
                "[你好吗|你还好吗|最近怎么样|你今天好吗|最近好吗|今天怎么样|过得怎么样|你最近好吗][？|]",
                "[嗨|你好|您好]，[你好吗|最近怎么样|最近好吗|今天怎么样]？",
            ),
        ),
        "thanks": (
            "不客气！",
            (
                "[谢谢|谢谢你|多谢|非常感谢|感谢|谢了|太感谢了|十分感谢][！||，tiny|你的帮助]",
                "[帮了大忙|很有用|很有帮助]，[谢谢|多谢|谢谢你]",
            ),
        ),
        "bye": (
            "再见！",
            (
                "[再见|拜拜|回头见|明天见|晚安|下次见|回见|我走了][！||，tiny|啦]",
                "[我要走了|我得走了|先走了]，[再见|拜拜|回头见]",
            ),
        ),
        "praise": (
            "谢谢夸奖！",
            (
                "[做得好|干得好|真棒|太棒了|很好|好样的|真不错|厉害][！||，tiny|啊]",
                "你[真聪明|真厉害|很聪明|很棒|真好|很厉害][！|]",
            ),
        ),
    },
}
