"""What counts as a right answer: kinds of reference answers against what responses state."""

import pytest

from persyn_datasets.signals.math_verify import right

HEADING = "Answer: Janet's ducks lay 16 eggs per day. She sells 9 for $2. The answer is 18."
# (reference, response, whether it is right)
LAST_STATEMENT = [
    (
        "18",
        HEADING,
        True,
    ),
    (
        "16",
        HEADING,
        False,
    ),
    ("18", "**Long Answer:** They lay 16 eggs, 7 are eaten. 9 * 2 = 18, so she makes $18.", True),
    ("18", "**Answer:** Janet's 16 ducks lay one egg each.\nThe answer is **18**.", True),
    (
        "18",
        "Short answer: 16?\n\nLet me see: 16 - 7 = 9, 9 * 2 = 18.\n\nFinal answer: 18",
        True,
    ),
    ("18", "The answer is 16. Wait, I forgot the price: she makes $18.", True),
    ("16", "The answer is 16. Wait, I forgot the price: she makes $18.", False),
    ("4", r"I get \boxed{3}. Wait, I forgot one: \boxed{4}.", True),
    ("3", r"I get \boxed{3}. Wait, I forgot one: \boxed{4}.", False),
    ("3, 4", r"I get \boxed{3}. Wait, I forgot one: \boxed{4}.", False),
    ("61", r"so \boxed{61}. Wait: yes, \boxed{61}.", True),
    ("3, 4", r"The solutions are \boxed{3} and \boxed{4}.", True),
    ("4", r"It is \boxed{3} or \boxed{4}.", False),
    ("5", r"Step 1: \boxed{3}" + "\n\n" + r"Step 2: \boxed{5}", True),
    ("61", r"\boxed{\boxed{61}}", True),
    ("7", "\\boxed{007}.\n\n**Final Answer**\n\\boxed{007}", True),
    ("61", "Sum: 300 + 2*150 = 600.\n\n✅ Final Answer: **61**", True),
    ("44", r"We get \boxed{44}. Since 17 * 44 is 748, our answer is correct.", True),
    ("18", "16 eggs.\n#### 18", True),
    ("16", "16 eggs.\n#### 18", False),
    ("18", "The answer is 18 because 9 eggs at 2 dollars are that much.", True),
    ("18", "Answer: 18\n\nExplanation: 9 eggs at 2 dollars each.", True),
    ("18", "The answer is 16 - 3 - 4 = 9 eggs. 9 * 2 = $18.", True),
    ("9", "The answer is 16 - 3 - 4 = 9 eggs. 9 * 2 = $18.", False),
    ("18", "She makes 9 * 2 = $18 every day.", True),
    ("18", "I do not know.", False),
    ("18", "", False),
    ("12", "She has **12** left.", True),
    ("4", "The answer is 4 (3 onions and 1 potato).", True),
    ("1", "The answer is 4 (3 onions and 1 potato).", False),
    ("18", "Answer: 16\nThat leaves 9 eggs, at $2 each.\n\n**18**", True),
    ("18", "Answer: 18\n\nNote: that is for 16 eggs.", True),
    ("18", "The answer is 18 or 19.", False),
    ("18, 19", "The answer is 18 or 19.", True),
    ("42", "<answer>42</answer>", True),
    ("42", '{"reasoning": "6 * 7", "answer": "42"}', True),
    ("160", "She ordered 160 roses. The answer is: Cannot be determined.", False),
    ("42", r"So \boxed{42", True),
    ("42", r"\boxed 42", True),
    ("42", r"It is \fbox{42}.", True),
    ("42", r"It is \boxed{42}. Put it into \boxed{}.", True),
    ("7", 'Answer: \\"7\\"', True),
    ("1/2", "The answer is: \\frac{1}{2}", True),
    ("2", "The answer is: \\frac{1}{2}", False),
]

THINKING = [
    ("12", "<think>Perhaps \\boxed{15}? No.</think>\nThe answer is 12.", True),
    ("15", "<think>Perhaps \\boxed{15}? No.</think>\nThe answer is 12.", False),
    ("12", "Perhaps $15$ ... \\boxed{15}? No.</think>\n\nShe has **12** left.", True),
    ("15", "<think>I get \\boxed{15}, but let me", False),
    ("15", "<think>I get \\boxed{15}.</think>", False),
    ("12", "<think>a</think>\\boxed{15}<think>b</think>\\boxed{12}", True),
    ("15", "[THINK]\\boxed{15}[/THINK]The answer is 12.", False),
    ("15", "<|channel|>analysis<|message|>\\boxed{15}<|end|><|start|>assistant"
     "<|channel|>final<|message|>\\boxed{12}", False),
]  # fmt: skip

NUMBERS = [
    ("1,000", "The answer is 1000.", True),
    (r"12\,500", r"\boxed{12500}", True),
    ("12500", r"\boxed{12\,500}", True),
    ("12500", "The answer is 12 500.", True),
    ("12500", "\\boxed{12\u202f500}", True),
    (r"12\,500", r"\boxed{512}", False),
    (r"10,\!080", r"\boxed{10{,}080}", True),
    (r"11,\! 111,\! 111,\! 100", r"\boxed{11111111100}", True),
    (r"\$32,\!348", r"\boxed{32348}", True),
    ("75", "The answer is $75.00.", True),
    ("$1,250", r"\boxed{1250}", True),
    ("-8", "The answer is −8.", True),
    ("8", "The answer is −8.", False),
    ("15", "$105 - $90 = $15", True),
    (".0000672", r"\boxed{6.72 \times 10^{-5}}", True),
    (".0000672", r"\boxed{0.0000671}", False),
    (r"\frac{1}{1000!}", r"\boxed{\frac{1}{1002!}}", False),
    (r"\frac{1}{2^{98}}", r"\boxed{\frac{1}{2^{97}}}", False),
    (r"\frac{1}{3}", r"\boxed{0.333333}", True),
    (r"\frac{1}{3}", r"\boxed{0.33}", False),
    (r"\frac{1}{2}", "It is 0.5", True),
    (r"\frac{1}{2}", r"It is $\frac{2}{4}$.", True),
    (r"\frac{1}{2}", r"It is $\frac{1}{3}$.", False),
    (r"\frac 47", r"\boxed{\frac{4}{7}}", True),
    (r"\frac 47", r"\boxed{47}", False),
    ("2000000", "The answer is 2 million.", True),
    ("0.5", r"\boxed{½}", True),
    ("7", "٧", True),
    ("9" * 5000, r"\boxed{" + "9" * 5000 + "}", False),
]

MIXED_NUMBERS = [
    (r"1\frac{4}{5}", r"\boxed{\frac{9}{5}}", True),
    (r"1\frac{4}{5}", r"\boxed{1.8}", True),
    (r"1\frac{4}{5}", r"\boxed{\frac{4}{5}}", False),
    (r"137 \frac{1}{2}", "The answer is 137 1/2 miles.", True),
    (r"2\frac{3}{4}", "2 3/4", True),
    ("11/4", "The answer is 2 3/4.", True),
    ("3/4", "The answer is 2 3/4.", False),
    (r"-1\frac{1}{2}", r"\boxed{-1.5}", True),
    ("2.5", "\\boxed{2½}", True),
]

PERCENT = [
    ("35%", r"\boxed{35\%}", True),
    ("35%", r"\boxed{35}", True),
    ("35%", r"\boxed{0.35}", True),
    ("35", "The answer is 35%.", True),
    (r"28\%", r"\boxed{28 \text{ percent}}", True),
    ("0.35", r"\boxed{35\%}", True),
    ("0.35", r"\boxed{35}", False),
    ("35", r"\boxed{0.35}", False),
    (r"\frac{1}{2}", "The answer is 50%.", True),
    ("0.5%", r"\boxed{50\%}", False),
    ("50%", r"\boxed{0.5\%}", False),
]

UNITS = [
    (r"60^\circ", r"\boxed{60}", True),
    ("60", r"\boxed{60^\circ}", True),
    ("60", "It is 60°.", True),
    ("24", r"$\boxed{24 \text{ apples}}$", True),
    ("24", r"\boxed{24\text{apples}}", True),
    ("24", r"\boxed{24 apples}", True),
    ("24 apples", r"\boxed{24}", True),
    ("5.4 \\text{ cents}", r"\boxed{5.4}", True),
    ("5.4 \\text{ cents}", r"\boxed{\$0.054}", True),
    ("5.4 \\text{ cents}", r"\boxed{\$5.4}", False),
    (r"864 \mbox{ inches}^2", r"\boxed{864 \text{ in}^2}", True),
    (r"864 \mbox{ inches}^2", r"\boxed{6 \text{ square feet}}", True),
    (r"15\mbox{ cm}^2", r"\boxed{15 \text{ m}^2}", False),
    (r"15\mbox{ cm}^2", r"\boxed{15}", True),
    ("5 cm", r"\boxed{50 \text{ mm}}", True),
    ("5 cm", r"\boxed{5 \text{ kg}}", False),
    ("2600", "The answer is 2600g.", True),
    (r"\frac{270}7\text{ degrees}", r"\boxed{\frac{270}{7}}", True),
    ("25000", "The answer is $25,000/year.", True),
    (r"12\pi", r"\boxed{12\pi \text{ cm}^2}", True),
    ("10", "The answer is 10 miles per hour.", True),
    ("4", r"\boxed{4x}", False),
]

BASES = [
    ("52_8", r"\boxed{52_{8}}", True),
    ("52_8", r"\boxed{52_{\text{eight}}}", True),
    ("52_8", "The answer is 52 base 8.", True),
    ("52_8", r"\boxed{(52)_8}", True),
    ("52_8", r"\boxed{52_9}", False),
    ("52_8", r"\boxed{52}", False),
    ("52_8", r"\boxed{8}", False),
    ("52", r"\boxed{52_8}", False),
    ("42", r"\boxed{42_{10}}", True),
    ("4210_{5}", r"\boxed{4210_5}", True),
    ("A3_{16}", r"\boxed{A3_{16}}", True),
]

WORDS = [
    ("ABC", r"\boxed{BCA}", False),
    ("ABC", r"\boxed{ABC}", True),
    ("ABC", r"\boxed{\text{ABC}}", True),
    (r"\text{cat}", r"\boxed{act}", False),
    (r"\text{Evelyn}", r"\boxed{Evelyn}", True),
    (r"\text{Evelyn}", "The answer is Evelyn.", True),
    (r"\text{Evelyn}", "The answer is **Navin**.", False),
    (r"\text{(C)}", r"\boxed{C}", True),
    (r"\text{(C)}", r"\boxed{\textbf{(C)}\ 5}", True),
    (r"\text{(C)}", r"\boxed{D}", False),
    ("C", "The answer is (C) five apples.", True),
    ("C", "The correct option is B, so the answer is B.", False),
    ("C", "**C**", True),
    ("yes", "Answer: Yes, because 5 is prime.", True),
    ("yes", "Answer: No, since 5 > 3.", False),
    (r"\text{even}", r"$\boxed{\text{even}}$", True),
    (r"\text{even}", r"\boxed{odd}", False),
    ("no solution", r"\boxed{\text{No solution}}", True),
    ("no solution", r"\boxed{\text{solution no}}", False),
    ("3:30", r"\boxed{3:30}", True),
    ("3:30", r"\boxed{3}", False),
    ("3:30", r"\boxed{\frac{1}{10}}", False),
    ("3:30 PM", r"\boxed{3:30\text{ p.m.}}", True),
    ("1969-07-16", r"\boxed{1946}", False),
    ("1969-07-16", "The answer is 1969-07-16.", True),
    ("ab", r"\boxed{a \cdot b}", True),
    ("Paris", "Paris.", True),
]

EQUATIONS = [
    ("0", r"\boxed{3x + 5 = 0}", False),
    ("0", r"\boxed{x^2 - 4 = 0}", False),
    ("0", r"\boxed{x = 0}", True),
    ("0", r"\boxed{0}", True),
    ("0", r"\boxed{a + b = 0}", False),
    ("0", r"\boxed{xy = 0}", False),
    ("0", r"\boxed{\sin x = 0}", False),
    ("0", r"\boxed{f(x) = 0}", True),
    ("0", "The answer is 2x + 1 = 0.", False),
    ("5", r"\boxed{x = 5}", True),
    ("5", r"\boxed{a + b = 5}", True),
    ("5", r"\boxed{2 + 3 = 5}", True),
    ("7", r"\boxed{2x + 3 = 7}", False),
    ("30", r"\boxed{\angle ABC = 30^\circ}", True),
    ("x=5", r"\boxed{5}", True),
    ("x=5", r"\boxed{x = 5}", True),
    ("x=5", r"\boxed{y = 5}", False),
    ("y = 2x + 3", r"\boxed{2x + 3}", True),
    ("y = 2x + 3", r"\boxed{3}", False),
    ("5x - 7y + 11z + 4 = 0", r"\boxed{-5x + 7y - 11z - 4 = 0}", True),
    ("5x - 7y + 11z + 4 = 0", r"\boxed{0}", False),
]

FORMULAS = [
    (r"5\sqrt{7}", r"\boxed{\sqrt{175}}", True),
    (r"5\sqrt{7}", "The answer is 5√7.", True),
    (r"$\sqrt{8}$", r"\boxed{2\sqrt{2}}", True),
    (r"3\pi", r"\boxed{3π}", True),
    (r"3\pi", r"\boxed{3 pi}", True),
    (r"3\pi", r"\boxed{3}", False),
    ("p - q", "The answer is p - q.", True),
    ("p - q", r"\boxed{q - p}", False),
    ("x^2 + 4x + 4", r"\boxed{(x+2)^2}", True),
    ("x^2 + 4x + 4", "\\boxed{x² + 4x + 4}", True),
    (r"7 \pm \sqrt{5}", r"\boxed{7 + \sqrt{5}, 7 - \sqrt{5}}", True),
    ("3, 5, 7", r"\boxed{7, 5, 3}", True),
    ("3, 5, 7", "The answer is 3, 5 and 7.", True),
    ("3, 5, 7", r"\boxed{3, 5}", False),
    ("(3, 4)", r"\boxed{(4, 3)}", False),
    ("(3,4]", r"\boxed{[3,4]}", False),
    (r"x \in [-2,7]", r"\boxed{[-2, 7]}", True),
    (r"(2,\infty)", r"\boxed{x > 2}", False),  # a condition is no set: see docs/verifiers.md
    (r"(0,9) \cup (9,36)", r"The answer is $(0,9) \cup (9,36)$.", True),
    (r"\left( 4, \frac{\pi}{3} \right)", r"\boxed{(4, \pi/3)}", True),
    ("6!", r"\boxed{720}", True),
    ("2^{64}", r"\boxed{18446744073709551616}", True),
    ("2^{64}", r"\boxed{2}", False),
]

OTHER_SCRIPTS = [
    ("26", "答案是26。", True),
    ("26", "答案：26个", True),
    ("26", r"所以答案为 \boxed{26}。", True),
    ("26", "答えは26です。", True),
    ("26", "Ответ: 26", True),
    ("26", "La respuesta es 26.", True),
    ("26", "La réponse est 26.", True),
    ("26", "Die Antwort ist 26.", True),
    ("26", "정답은 26입니다.", True),
    ("26", "答案是２６。", True),
    ("2.6", "答案是26。", False),
]

SOLUTIONS_AS_REFERENCES = [
    ("She sells 16 - 7 = 9 eggs.\n#### 18", "The answer is 18.", True),
    ("She sells 16 - 7 = 9 eggs.\n#### 18", "The answer is 9.", False),
    (r"We get $x = 3$, so it is $\boxed{\frac{14}{3}}$.", r"\boxed{14/3}", True),
    (r"We get $x = 3$. The answer is: \frac{14}{3}", r"\boxed{3}", False),
]

KINDS = {
    name.lower(): rows
    for name, rows in list(globals().items())
    if name.isupper() and isinstance(rows, list)
}


@pytest.mark.parametrize("kind", KINDS)
def test_verdicts_of_a_kind(kind):
    wrong = [row for row in KINDS[kind] if right(row[0], row[1]) != row[2]]
    assert not wrong
