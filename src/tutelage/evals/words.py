"""The report's words in English and Chinese: one key, two texts, the same placeholders (a test compares them)."""
# ruff: noqa: E501 - a catalogue is a table of texts

import re
from collections.abc import Callable

from tutelage.core.errors import UserError, nearest
from tutelage.judges.rules import CJK

EN = {
    "html_lang": "en",
    # sections
    "glance": "At a glance",
    "wins": "Which answers are preferred",
    "not_improved": "What did not improve",
    "next": "What to try next",
    "tasks": "Tasks",
    "safety": "Safety",
    "sides": "Side by side",
    "training": "Training",
    "reward_model": "The reward model",
    "judged": "How it was judged",
    "settings": "Data and settings",
    "glossary": "What the figures mean",
    # header and headline table
    "simulated": "Simulated, not human",
    "created": "Made {when}",
    "prompts_held_out": "{n} held-out prompts",
    "interval_note": "Brackets hold 95% intervals. ↑ more is better, ↓ less is better, ↕ neither. A mark beside a figure "
                     "compares it with {base}, or a win rate with 50%: ▲ better, ▼ worse, and ● where the intervals leave it open.",
    "figure": "Figure",
    "better": "better",
    "worse": "worse",
    "unclear": "open",
    "none_yet": "none",
    "not_measured": "not measured",
    "dash": "–",
    "versus": "{a} against {b}",
    "win_row_previous": "Win rate against the model before it",
    "win_row_base": "Win rate against {base}",
    "win_row_matched": "Win rate where answers are about as long",
    "sentence_clear_up": "{a} is preferred to {b} on {rate} of prompts {interval}.",
    "sentence_clear_down": "{b} is preferred to {a}: {a} wins only {rate} of prompts {interval}.",
    "sentence_unclear": "{a} against {b}: {rate} {interval}; the interval contains 50%, so no preference is shown.",
    # win rates
    "wins_lead": "Share of held-out prompts on which the judge scores the first model higher; a tie counts half. "
                 "The dashed line is 50%: no preference. The whisker is the 95% interval, clustered by prompt group.",
    "wtl": "{wins} won, {ties} tied, {losses} lost",
    "matched_line": "length-matched: {rate} {interval}",
    "by_task": "By task",
    "judge": "Judge",
    "judge_accuracy": "right on {rate} {interval} of {n} held-out pairs",
    "judge_accuracy_unknown": "its own accuracy was not measured",
    # tasks and safety
    "tasks_lead": "Each mark is one model on held-out prompts; the line through it is the 95% interval (bootstrap over prompt groups).",
    "all_figures": "All figures",
    "task": "Task",
    "metric": "Metric",
    "safety_lead": "Read the two together: a model that refuses everything has no harmful answers. Refusal is found by the rule "
                   "{judge}, which sees words and not meaning. Intervals are exact (Clopper-Pearson).",
    # curves
    "training_lead": "Pale: every step. Bold: moving average.",
    "no_curves": "No training curves were given.",
    "step": "step",
    "series_train": "training",
    "series_eval": "held out",
    "curve_loss": "loss",
    "curve_accuracy": "accuracy",
    "curve_reward": "reward",
    "curve_kl": "KL from the reference",
    "curve_entropy": "entropy",
    "curve_length": "answer length",
    "unit_nats": "nats",
    "unit_share": "share",
    "unit_reward": "judge's scale",
    "unit_tokens": "tokens",
    "unit_points": "points",
    "unit_words": "words",
    # reward model
    "rm_accuracy": "Accuracy on held-out pairs",
    "rm_ceiling": "Ceiling: how often raters agree with each other",
    "rm_ece": "Calibration error (ECE)",
    "rm_length": "Correlation of score and answer length",
    "rm_plot": "Calibration: what it promises and what comes true",
    "rm_plot_x": "confidence",
    "rm_plot_y": "right",
    "rm_plot_note": "On the dashed line promise and outcome are equal; a bigger dot stands for more pairs.",
    "rm_none": "No reward model was measured.",
    # side by side
    "sides_lead": "Prompts were picked by the digest of their text, not by how good the answers are.",
    "more": "{task}: {n} more",
    "prompt": "Prompt",
    "reference": "Reference",
    "empty_answer": "(empty answer)",
    "cut_off": "cut off at the length limit",
    "refusal": "refusal",
    "preferred": "preferred to {other}",
    "role_system": "system",
    "role_user": "user",
    "role_assistant": "assistant",
    "role_tool": "tool",
    # judged
    "held_out_yes": "The judge that gives the win rates was never seen by training: it gave no reward, and it learned from other "
                    "preference pairs than the reward model did.",
    "held_out_no": "Warning: it is not stated that the judge was kept apart from training. If training could see it, the win rates "
                   "show how well its taste was copied, not whether the answers are better.",
    "judged_rest": "BLEU, chrF, ROUGE, accuracy and refusal come from rules and references, not from a model. Answers are one a "
                   "prompt. Intervals treat prompts of one group as one unit.",
    "judge_is_a_model": "A judge is not a person: before you rely on a win rate, compare the judge with your own raters.",
    # settings
    "setting": "Setting",
    "value": "Value",
    "stage": "Stage",
    "time": "Time",
    "prompts": "Prompts",
    "settings_none": "No settings were recorded.",
    "formulas": "Formulas, units and sources: docs/glossary.md",
    # findings: what did not improve
    "nothing_failed": "Every figure measured here is better than the {base}'s, with intervals that do not overlap.",
    "no_win_gain": "{a} is not shown to beat {b}: win rate {rate} {interval} contains 50% ({judge}).",
    "win_loss": "{a} is worse than {b}: win rate {rate} {interval} ({judge}).",
    "matched_gone": "Among answers of about the same length, {a} is not shown to beat {b}: {rate} {interval}. "
                    "Part of its win may be length.",
    "got_worse": "{what} got worse: {before} for {base}, {after} {interval} for {model}.",
    "slipped": "{what} slipped from {before} to {after} {interval} for {model}; the intervals overlap, so it may be chance.",
    "no_clear_change": "No clear change from {base} to {model}, intervals overlap: {list}.",
    # findings: what to try
    "try_more_pairs": "Collect more preference pairs or clearer ones: the reward model is right on only {rate} {interval} of held-out pairs.",
    "try_near_ceiling": "The reward model is within reach of the rater ceiling ({ceiling}); better guidelines for raters will bring "
                        "more than more training.",
    "try_calibrate": "Calibrate the reward model (ECE {ece}): fewer epochs, label smoothing, or soft labels from several raters.",
    "try_length": "Scores follow answer length (correlation {r}): add pairs in which the shorter answer is better, or a length rule.",
    "try_more_kl": "KL reached {kl} nats: raise kl_beta or stop earlier, before the policy leaves what the reward model knows.",
    "try_less_kl": "KL stayed at {kl} nats: the policy hardly moved. Take more steps, a higher learning rate or a lower kl_beta.",
    "try_entropy": "Entropy fell to {share} of where it began: raise kl_beta or the sampling temperature, and look for one answer to everything.",
    "try_hacking": "Reward rose while the independent judge saw no gain: the policy may exploit the reward model. Judge fresh answers and retrain it.",
    "try_overfit": "{run}: held-out loss rose after step {step}; take fewer epochs or more data.",
    "try_refusals": "{rate} of harmful requests are still answered: add refusals with a helpful alternative, and unsafe rejected answers.",
    "try_look_alikes": "{rate} of harmless look-alikes are refused: add answered look-alikes to the instructions and pairs.",
    "try_truncated": "{rate} of answers hit the length limit: raise max_tokens, or prefer shorter answers in the pairs.",
    "try_repetition": "{rate} of word sequences are repeats: put rambling answers among the rejected ones.",
    "try_more_prompts": "The interval of {a} against {b} is {width} points wide: evaluate on about {n} prompts to halve it.",
    "try_people": "Replace what is simulated by people's judgements: `tutelage init`, then your own raters and guidelines.",
    "try_own_data": "Train on your own instructions: `tutelage data import`, then the same recipes.",
}

ZH = {
    "html_lang": "zh-CN",
    "glance": "概览",
    "wins": "哪个模型的回答更受偏好",
    "not_improved": "没有改进的地方",
    "next": "下一步建议",
    "tasks": "任务指标",
    "safety": "安全性",
    "sides": "回答对比",
    "training": "训练过程",
    "reward_model": "奖励模型",
    "judged": "评判方式",
    "settings": "数据与设置",
    "glossary": "指标说明",
    "simulated": "以下为模拟，并非真人",
    "created": "生成于 {when}",
    "prompts_held_out": "{n} 条留出提示",
    "interval_note": "方括号内为 95% 区间。↑ 越高越好，↓ 越低越好，↕ 无好坏之分。数字旁的记号表示与 {base} 相比（胜率则与 50% 相比）："
                     "▲ 更好，▼ 更差，● 区间重叠、尚无定论。",
    "figure": "指标",
    "better": "更好",
    "worse": "更差",
    "unclear": "未定",
    "none_yet": "无",
    "not_measured": "未测量",
    "dash": "–",
    "versus": "{a} 对 {b}",
    "win_row_previous": "对前一个模型的胜率",
    "win_row_base": "对 {base} 的胜率",
    "win_row_matched": "长度相近时的胜率",
    "sentence_clear_up": "在 {rate} {interval} 的提示上，{a} 的回答优于 {b}。",
    "sentence_clear_down": "{b} 优于 {a}：{a} 的胜率只有 {rate} {interval}。",
    "sentence_unclear": "{a} 对 {b}：{rate} {interval}，区间包含 50%，看不出偏好。",
    "wins_lead": "评判者给前一个名字打分更高的留出提示所占的比例，平局算一半。虚线为 50%，即没有偏好；横线为按提示组聚类的 95% 区间。",
    "wtl": "{wins} 胜 {ties} 平 {losses} 负",
    "matched_line": "长度相近时：{rate} {interval}",
    "by_task": "按任务",
    "judge": "评判者",
    "judge_accuracy": "在 {n} 对留出偏好上的正确率为 {rate} {interval}",
    "judge_accuracy_unknown": "未测量其自身的正确率",
    "tasks_lead": "每个记号是一个模型在留出提示上的成绩，穿过它的横线是 95% 区间（按提示组自助抽样）。",
    "all_figures": "全部数字",
    "task": "任务",
    "metric": "指标",
    "safety_lead": "两个比率要一起看：什么都拒绝的模型不会有有害回答。是否拒绝由规则 {judge} 判断，它只看措辞，不懂含义。"
                   "区间为精确区间（Clopper-Pearson）。",
    "training_lead": "浅色为每一步，深色为移动平均。",
    "no_curves": "没有提供训练曲线。",
    "step": "步",
    "series_train": "训练",
    "series_eval": "留出",
    "curve_loss": "损失",
    "curve_accuracy": "正确率",
    "curve_reward": "奖励",
    "curve_kl": "与参考模型的 KL",
    "curve_entropy": "熵",
    "curve_length": "回答长度",
    "unit_nats": "奈特",
    "unit_share": "比例",
    "unit_reward": "评判者的尺度",
    "unit_tokens": "词元",
    "unit_points": "分",
    "unit_words": "词",
    "rm_accuracy": "留出偏好对上的正确率",
    "rm_ceiling": "上限：评分者彼此一致的比例",
    "rm_ece": "校准误差（ECE）",
    "rm_length": "得分与回答长度的相关系数",
    "rm_plot": "校准：承诺的把握与实际结果",
    "rm_plot_x": "把握",
    "rm_plot_y": "正确",
    "rm_plot_note": "虚线上承诺与结果相等；圆点越大，偏好对越多。",
    "rm_none": "没有测量奖励模型。",
    "sides_lead": "提示按其文本的摘要值选取，与回答的好坏无关。",
    "more": "{task}：另外 {n} 条",
    "prompt": "提示",
    "reference": "参考答案",
    "empty_answer": "（空回答）",
    "cut_off": "达到长度上限被截断",
    "refusal": "拒绝",
    "preferred": "优于 {other}",
    "role_system": "系统",
    "role_user": "用户",
    "role_assistant": "助手",
    "role_tool": "工具",
    "held_out_yes": "给出胜率的评判者从未被训练接触：它没有提供奖励，学习所用的偏好对也与奖励模型不同。",
    "held_out_no": "注意：没有说明评判者与训练相互隔离。如果训练能接触到它，胜率只说明模型学会了迎合它，而不说明回答变好。",
    "judged_rest": "BLEU、chrF、ROUGE、正确率和拒绝判断来自规则与参考答案，而非模型。每条提示一个回答。同一组的提示在区间中算作一个单位。",
    "judge_is_a_model": "评判者不是真人：在依赖胜率之前，请先拿评判者与您自己的评分者比较。",
    "setting": "设置",
    "value": "值",
    "stage": "阶段",
    "time": "用时",
    "prompts": "提示数",
    "settings_none": "没有记录设置。",
    "formulas": "公式、单位与出处见 docs/glossary.md",
    "nothing_failed": "这里测量的每个指标都优于 {base}，且区间不重叠。",
    "no_win_gain": "没有证据表明 {a} 胜过 {b}：胜率 {rate} {interval}，包含 50%（{judge}）。",
    "win_loss": "{a} 不如 {b}：胜率 {rate} {interval}（{judge}）。",
    "matched_gone": "在长度相近的回答中，没有证据表明 {a} 胜过 {b}：{rate} {interval}。它的优势可能部分来自长度。",
    "got_worse": "{what} 变差：{base} 为 {before}，{model} 为 {after} {interval}。",
    "slipped": "{what} 从 {before} 变为 {model} 的 {after} {interval}，略有退步；区间重叠，可能是偶然。",
    "no_clear_change": "从 {base} 到 {model} 没有明显变化（区间重叠）：{list}。",
    "try_more_pairs": "收集更多或更清晰的偏好对：奖励模型在留出偏好对上的正确率只有 {rate} {interval}。",
    "try_near_ceiling": "奖励模型已接近评分者一致性的上限（{ceiling}）；改进评分指南比继续训练更有用。",
    "try_calibrate": "校准奖励模型（ECE {ece}）：减少轮数、使用标签平滑，或采用多名评分者的软标签。",
    "try_length": "得分随回答长度变化（相关系数 {r}）：加入短回答更好的偏好对，或加一条长度规则。",
    "try_more_kl": "KL 达到 {kl} 奈特：提高 kl_beta 或提前停止，以免策略离开奖励模型熟悉的范围。",
    "try_less_kl": "KL 只有 {kl} 奈特：策略几乎没有变化。增加步数、提高学习率或降低 kl_beta。",
    "try_entropy": "熵降到开始时的 {share}：提高 kl_beta 或采样温度，并检查是否对所有问题都给同一种回答。",
    "try_hacking": "奖励上升，而独立评判者看不到改进：策略可能在钻奖励模型的空子。请评判新的回答并重新训练奖励模型。",
    "try_overfit": "{run}：留出损失在第 {step} 步之后上升；减少轮数或增加数据。",
    "try_refusals": "仍有 {rate} 的有害请求得到回答：加入带有有益替代建议的拒绝，以及不安全的落选回答。",
    "try_look_alikes": "有 {rate} 的无害请求被误拒：在指令和偏好对中加入正常回答的相似问题。",
    "try_truncated": "有 {rate} 的回答达到长度上限：提高 max_tokens，或在偏好对中偏向更短的回答。",
    "try_repetition": "有 {rate} 的词序列是重复：把啰嗦的回答放进落选回答中。",
    "try_more_prompts": "{a} 对 {b} 的区间宽 {width} 个百分点：用大约 {n} 条提示评估可使其减半。",
    "try_people": "用真人的判断代替模拟：运行 `tutelage init`，使用您自己的评分者和指南。",
    "try_own_data": "用您自己的指令训练：运行 `tutelage data import`，再用同样的配方。",
}

CATALOGUES = {"en": EN, "zh": ZH}

MODELS = {"base": {"en": "Base", "zh": "基础模型"}, "sft": {"en": "SFT", "zh": "SFT"}, "ppo": {"en": "PPO", "zh": "PPO"}}

TASKS = {
    "all": {"en": "All prompts", "zh": "全部提示"},
    "translation_en_zh": {"en": "Translation, English → Chinese", "zh": "翻译：英 → 中"},
    "translation_zh_en": {"en": "Translation, Chinese → English", "zh": "翻译：中 → 英"},
    "translation_en_fr": {"en": "Translation, English → French", "zh": "翻译：英 → 法"},
    "summarisation": {"en": "Summarisation", "zh": "摘要"},
    "qa": {"en": "Question answering", "zh": "问答"},
    "classification": {"en": "Classification", "zh": "分类"},
    "customer_service": {"en": "Customer service", "zh": "客服"},
    "companion": {"en": "Companion chat", "zh": "陪伴聊天"},
    "everyday": {"en": "Everyday questions", "zh": "日常问题"},
    "refusal": {"en": "Refusals", "zh": "拒绝"},
    "safety_harmful": {"en": "Harmful requests", "zh": "有害请求"},
    "safety_benign": {"en": "Harmless look-alikes", "zh": "看似有害的无害请求"},
    "other": {"en": "Other", "zh": "其他"},
}

METRICS = {  # key -> name and a line of explanation; the glossary page has the formulas
    "win_rate": {"en": ("Win rate", "share of prompts on which the judge scores this model's answer higher; a tie is half"),
                 "zh": ("胜率", "评判者给该模型的回答打分更高的提示比例，平局算一半")},
    "bleu": {"en": ("BLEU", "overlap of word sequences with the reference, 0 to 100"), "zh": ("BLEU", "与参考译文的词序列重合度，0 到 100")},
    "chrf": {"en": ("chrF", "overlap of character sequences with the reference, 0 to 100"),
             "zh": ("chrF", "与参考译文的字符序列重合度，0 到 100")},
    "rougeL": {"en": ("ROUGE-L", "longest common word sequence with the reference, F-measure, 0 to 100"),
               "zh": ("ROUGE-L", "与参考文本的最长公共词序列，F 值，0 到 100")},
    "accuracy": {"en": ("Accuracy, strict", "share of answers that are the right label and nothing else"),
                 "zh": ("正确率（严格）", "回答只有正确标签、别无他物的比例")},
    "accuracy_lenient": {"en": ("Accuracy, lenient", "share of answers whose first line names the right label and no other"),
                         "zh": ("正确率（宽松）", "首行只提到正确标签的回答比例")},
    "contains": {"en": ("Contains the answer", "share of answers in which an accepted answer stands word for word"),
                 "zh": ("包含答案", "逐字包含可接受答案的回答比例")},
    "exact": {"en": ("Exact match", "share of answers that are an accepted answer and nothing else"),
              "zh": ("完全匹配", "与可接受答案完全一致的回答比例")},
    "f1": {"en": ("Token F1", "words shared with the accepted answer, precision and recall"), "zh": ("词元 F1", "与可接受答案共有的词，兼顾精确与召回")},
    "length": {"en": ("Answer length", "mean number of words; a Chinese character counts as one"), "zh": ("回答长度", "平均词数，一个汉字算一个词")},
    "truncated": {"en": ("Cut off", "share of answers that hit the length limit"), "zh": ("被截断", "达到长度上限的回答比例")},
    "repetition": {"en": ("Repetition", "share of four-word sequences that stood in the same answer before"),
                   "zh": ("重复", "在同一回答中出现过的四词序列比例")},
    "language": {"en": ("Right language", "share of answers mostly in the script that was asked for"),
                 "zh": ("语言正确", "主要使用所要求文字的回答比例")},
    "harmful_answered": {"en": ("Harmful requests answered", "share of harmful requests that were not refused"),
                         "zh": ("有害请求得到回答", "没有被拒绝的有害请求比例")},
    "over_refused": {"en": ("Harmless requests refused", "share of harmless look-alikes that were refused"),
                     "zh": ("无害请求被误拒", "被拒绝的无害请求比例")},
}


def words(lang: str) -> Callable[..., str]:
    """`t = words("zh")`; `t("versus", a="PPO", b="SFT")`.  Unknown languages and keys are errors."""
    if lang not in CATALOGUES:
        raise UserError(f"the report speaks {', '.join(CATALOGUES)}; got {lang!r}{nearest(lang, CATALOGUES)}")
    catalogue = CATALOGUES[lang]
    # A Chinese name put into a Chinese sentence needs none of the spaces that stand round a Latin one.
    return lambda key, **values: _INNER_SPACE.sub("", catalogue[key].format(**values))


_INNER_SPACE = re.compile(rf"(?<=[{CJK}，。：；（）]) +(?=[{CJK}，。：；（）])")


def model_name(name: str, lang: str) -> str:
    return MODELS[name][lang] if name in MODELS else name


def task_name(task: str, lang: str) -> str:
    return TASKS[task][lang] if task in TASKS else task


def metric_name(metric: str, lang: str) -> str:
    return METRICS[metric][lang][0]
