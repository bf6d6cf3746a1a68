#!/usr/bin/python3
"""Every case of tokenizer_cases.json through `godwitd tokenize`.

The ids and the decoded text were made by Hugging Face tokenizers. All cases
go through one process, as JSON lines; the answers must agree case by case.
Usage: check_tokenizer.py GODWITD MODEL_DIR CASES_JSON
"""
import json
import subprocess
import sys


def main():
    program, model, path = sys.argv[1:4]
    with open(path, encoding="utf-8") as file:
        cases = json.load(file)
    lines = "".join(json.dumps({"text": case["text"]}) + "\n" for case in cases)
    done = subprocess.run([program, "tokenize", "--model", model],
                          input=lines.encode(), stdout=subprocess.PIPE,
                          timeout=120)
    answers = done.stdout.decode().splitlines()
    n_bad = abs(len(cases) - len(answers))
    for case, answer in zip(cases, map(json.loads, answers)):
        if (answer["ids"], answer["decoded"]) != (case["ids"], case["decoded"]):
            n_bad += 1
            print("differs:", json.dumps(case["text"]), file=sys.stderr)
            print("  expected", case["ids"], file=sys.stderr)
            print("  found   ", answer["ids"], file=sys.stderr)
    print(f"tokenizer cases={len(cases) - n_bad}/{len(cases)} "
          f"exit={done.returncode}")
    return 1 if n_bad or done.returncode or not cases else 0


if __name__ == "__main__":
    sys.exit(main())
