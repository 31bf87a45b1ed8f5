"""Two lines of thought that meet in DLRM."""

from __future__ import annotations

from drawings.kit import Drawing

LEFT = ("content filtering", "collaborative filtering", "matrix factorisation", "factorisation machine")
RIGHT = ("linear regression", "logistic regression", "trees, boosting", "deep networks (MLP)")


def draw() -> Drawing:
    picture = Drawing(300, "From recommendation and from prediction, two lines of models lead to DLRM")
    for x, heading, models, kind in ((4, "recommend", LEFT, "table"), (188, "predict", RIGHT, "dense")):
        picture.text((x + 84, 22), heading, anchor="middle", look="strong", size=13)
        for number, model in enumerate(models):
            y = 34 + 46 * number
            picture.box((x, y), (168, 28), model, kind=kind)
            if number:
                picture.arrow((x + 84, y - 18), (x + 84, y - 1))
        picture.arrow((x + 84, 200), (x + 84, 214), (150 if x < 100 else 210, 234))
    picture.box((90, 235), (180, 50), "DLRM: vectors,\ntheir products, MLPs", kind="result", bold=True)
    return picture
