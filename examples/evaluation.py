"""An evaluation: thousands of small cases, scored in parallel, with a progress bar.

squall run examples/evaluation.py
squall run examples/evaluation.py --cases 200
"""

import squall

app = squall.App("evaluation")


def model(question: str) -> str:
    """Stands in for yours. It is wrong about every seventh sum."""
    a, b = (int(part) for part in question.split("+"))
    return str(a + b + (1 if (a + b) % 7 == 0 else 0))


@app.function()
@squall.concurrent(max_inputs=8)
def score(case: tuple[str, str]) -> bool:
    question, expected = case
    return model(question) == expected


@app.local_entrypoint()
def main(cases: int = 2000) -> None:
    questions = [(f"{n}+{n % 10}", str(n + n % 10)) for n in range(cases)]
    results = list(score.map(questions))
    wrong = [question for (question, _), right in zip(questions, results, strict=True) if not right]
    print(f"{len(results)} cases, {100 * sum(results) / len(results):.1f} % right")
    print("wrong first about:", ", ".join(wrong[:3]))
