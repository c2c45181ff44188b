"""Calls a deployed app from an ordinary Python program; see `translator.py`.

python examples/use_translator.py "guten morgen"
"""

import sys

import squall

translate = squall.Function.from_name("translator", "translate")
Dictionary = squall.Cls.from_name("translator", "Dictionary")

if __name__ == "__main__":
    text = " ".join(sys.argv[1:]) or "guten abend"
    print(translate.remote(text))
    print(list(Dictionary().look_up.map(text.split())))

    later = translate.spawn(text)  # goes on without this program; another one can ask for the result by its id
    print(f"{later.object_id[:3]}...: {later.get(timeout=30)}")
