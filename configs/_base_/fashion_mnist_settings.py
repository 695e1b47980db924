# What is tried for each method of the study, four settings for every one of them: the labels' weight against
# distillation's; where a temperature is the method's own, that as well; for the student alone its label smoothing.
_by_default = [dict(model=dict(task_loss=dict(weight=weight))) for weight in (1.0, 0.5, 0.25, 2.0)]
_tempered = [
    dict(model=dict(task_loss=dict(weight=weight), logit_loss=dict(temperature=temperature)))
    for weight in (1.0, 0.5)
    for temperature in (1.0, 4.0)
]
_settings = dict(
    kd=_tempered,
    scratch=[dict(model=dict(task_loss=dict(label_smoothing=value))) for value in (0.1, 0.0, 0.05, 0.2)],
)
