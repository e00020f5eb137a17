"""Why each check is made: what it would mean for the robust accuracy if it failed."""

BF16 = "bf16 search of"  # the attack's label follows
WHY = {
    BF16: (
        "The attack searched in bfloat16 to save time. Some of what it left was attacked again, in bfloat16 and in "
        "float32 from the same start; if float32 breaks more than chance explains, the accuracy is an upper bound."
    ),
    "adversarials re-checked": (
        "A robust accuracy counts only if every attacked image stayed inside the ball and in [0, 1], and if the "
        "verdict was taken in float32 and not in a lower precision."
    ),
    "repeatable forward pass": (
        "A model that answers differently each time confuses the attacker by chance; the attack then needs an average "
        "over many passes to be fair."
    ),
    "model unchanged by evaluation": (
        "If looking at the model changes it, the number depends on what was looked at before."
    ),
    "outputs are logits": (
        "Attacks apply a softmax themselves. Applied twice, it flattens the gradient and makes a model look robust."
    ),
    "independent of the batch": (
        "If an image's answer depends on its neighbours in the batch, so does its robustness, and an attacker may "
        "choose the neighbours."
    ),
    "inputs normalised once": (
        "Pixels on another scale than in training spoil the accuracy and make eps mean something else."
    ),
    "gradients reach the pixels": (
        "Gradient attacks follow the gradient to the pixels. Where there is none they fail, and the model is not "
        "robust but hidden (gradient masking)."
    ),
    "logits are not saturated": (
        "Where logits are huge, the gradient of cross-entropy rounds to nothing and the attack stands still."
    ),
    "more steps are stronger": (
        "An attack with more steps has to do at least as much harm. If it does less, its gradients mislead it."
    ),
    "a large ball breaks everything": (
        "In a ball that holds a plain grey image no model can be right. An attack that leaves images standing there "
        "has failed, and so has the same attack in smaller balls."
    ),
    "stronger than noise": (
        "Random noise knows nothing of the model. An image that falls to noise and not to the attack shows that the "
        "attack is weak."
    ),
    "stronger than a black-box attack": (
        "Square sees answers alone, never a gradient. If it breaks what gradients leave, the gradients are masked."
    ),
    "stronger than a transferred attack": (
        "Adversarials of another model, made without a look at this one, should do less harm than its own."
    ),
    "adversarials hold in float32": (
        "Adversarial images have to fool the model when looked at again, in another order of the batch."
    ),
    "adversarials hold in 8 bits": (
        "A picture is saved in 256 grey levels. Adversarials that do not survive this live off rounding."
    ),
}


def why(name: str) -> str:
    """The explanation of the check `name`; empty for one that is not known here."""
    return WHY.get(BF16 if name.startswith(BF16) else name, "")
