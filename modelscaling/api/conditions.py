"""The conditions of a ModelScaling and the reasons that they give, each with its sentence.

`status.state`, the one word of `kubectl get`, is derived from the conditions and never decides
anything. A condition `Failed` may also carry a reason that the trainer gave (NoData, NotFinite
and so on); those are documented where they arise.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class _Documented(StrEnum):
    """A word with the sentence that explains it."""

    sentence: str

    def __new__(cls, word: str, sentence: str) -> Self:
        """Make a member that is its word and carries its sentence."""
        member = str.__new__(cls, word)
        member._value_ = word
        member.sentence = sentence
        return member


class ConditionType(_Documented):
    """What a condition speaks of."""

    ACCEPTED = ("Accepted", "The spec is valid; when False, the reason and the fix are given.")
    RUNNING = ("Running", "A group of pods trains; when False, what it waits for is given.")
    RESCALING = (
        "Rescaling",
        (
            "A group that trained is being replaced by one with other pods, another mesh or other "
            "settings."
        ),
    )
    SUSPENDED = ("Suspended", "The run is saved and has given its pods back.")
    STALLED = (
        "Stalled",
        "No step was done for much longer than steps usually take; the rank that lags is given.",
    )
    OVERFITTING = (
        "Overfitting",
        (
            "The validation loss has risen over several validations while the training loss fell; "
            "the step at which it was best is given."
        ),
    )
    COMPLETE = (
        "Complete",
        "The run has done all its steps, or stopped early; it does not run again.",
    )
    FAILED = ("Failed", "The run was given up; it does not run again.")


class Reason(_Documented):
    """Why a condition has its value."""

    ACCEPTED = ("Accepted", "The spec is valid.")
    INVALID_SPEC = (
        "InvalidSpec",
        "A field contradicts another or cannot work; a group that trains goes on as it was.",
    )
    GROWTH_REFUSED = (
        "GrowthRefused",
        "The trained model does not become the declared one; the run trains on as it was.",
    )
    GROWTH_WAITS = (
        "GrowthWaits",
        "The model is to grow while another change is under way, and grows after it.",
    )
    GROWTH_REJECTED = (
        "GrowthRejected",
        "The grown model's validation loss was too high; the run trains on as it was.",
    )
    INVALID_TEMPLATE = (
        "InvalidTemplate",
        "spec.template or spec.checkpoint.volume does not make a pod that the API server accepts.",
    )
    POD_FORBIDDEN = (
        "PodForbidden",
        "The API server forbids the run's pods: a quota, Pod Security or another admission rule.",
    )
    NAME_TAKEN = (
        "NameTaken",
        "An object with the name of one of the run's own exists and belongs to somebody else.",
    )
    WAITING_FOR_INIT_FROM = (
        "WaitingForInitFrom",
        "The run of spec.model.initFrom.modelScaling is not there, or not over yet.",
    )
    WAITING_FOR_PODS = ("WaitingForPods", "Pods are created, scheduled or started.")
    UNSCHEDULABLE = ("Unschedulable", "The scheduler finds no node for a pod.")
    POD_CANNOT_START = (
        "PodCannotStart",
        "The kubelet cannot start a pod: its image cannot be pulled, or its container not made.",
    )
    WAITING_FOR_AGENTS = (
        "WaitingForAgents",
        "Pods run; their agents import the trainer and open the data, or do not answer yet.",
    )
    STARTED = ("Started", "The run's first group was formed.")
    FORMING = ("Forming", "The pods meet and load the state.")
    TRAINING = ("Training", "The group trains.")
    NOT_RESCALING = ("NotRescaling", "The group is the one that is wished.")
    BACKING_OFF = (
        "BackingOff",
        (
            "A pod failed and is replaced after a pause that doubles with each failure without "
            "progress."
        ),
    )
    SUSPENDING = ("Suspending", "The group saves at a step boundary and ends.")
    SUSPENDED = ("Suspended", "spec.suspend is true.")
    SCALED_TO_ZERO = ("ScaledToZero", "spec.replicas is 0.")
    NOT_SUSPENDED = ("NotSuspended", "Neither is spec.suspend true nor spec.replicas 0.")
    REPLICAS_CHANGED = ("ReplicasChanged", "The number of pods or processes changed.")
    PARALLELISM_CHANGED = (
        "ParallelismChanged",
        "The same processes train on another mesh.",
    )
    PODS_CHANGED = ("PodsChanged", "A pod was replaced by another one.")
    SETTINGS_CHANGED = ("SettingsChanged", "The training settings changed.")
    MODEL_GROWN = ("ModelGrown", "The model was declared larger, and has grown.")
    TEMPLATE_CHANGED = (
        "TemplateChanged",
        "What the spec says of its pods changed: new ones replace all of them.",
    )
    DATA_MISMATCH = (
        "DataMismatch",
        "A pod sees other data than those that train, and is not taken into their group.",
    )
    CHECKPOINT_FAILED = (
        "CheckpointFailed",
        "What would end the pods that train waits for a save that succeeds; the last one failed.",
    )
    GROUP_BROKE = ("GroupBroke", "A member of the group failed or was lost.")
    WORKER_REPLACED = (
        "WorkerReplaced",
        "A worker process died or hung and was replaced in its pod; the same pods train on.",
    )
    POD_LEFT = (
        "PodLeft",
        "A pod was told to end, by an eviction or a deletion, and handed its state over.",
    )
    PODS_SEVERED = (
        "PodsSevered",
        "Two pods could not reach each other while the operator heard both; one was given up.",
    )
    NODE_LOST = (
        "NodeLost",
        "A pod's agent fell silent for the operator and for the other pods; the pod was given up.",
    )
    NO_STEP = ("NoStep", "No step was done for long; the message names who lags.")
    STEPS_DONE = ("StepsDone", "Steps are done in their usual time, or none is to be done.")
    FAILS_AT_SAME_STEP = (
        "FailsAtSameStep",
        "The run failed again and again without a step in between; the last failure is given.",
    )
    VALIDATION_LOSS_ROSE = (
        "ValidationLossRose",
        "The model learns what it is trained on at the expense of what it is not.",
    )
    NOT_OVERFITTING = (
        "NotOverfitting",
        "No rise of the validation loss beside a falling training loss has been seen.",
    )
    COMPLETE = ("Complete", "All steps are done.")
    EARLY_STOPPED = (
        "EarlyStopped",
        "The validation loss did not improve for training.earlyStopping.patience validations.",
    )
    FAILED = ("Failed", "The run was given up.")
    MAX_RESTARTS_EXCEEDED = (
        "MaxRestartsExceeded",
        "More pods failed than spec.maxRestarts allows; the last one's message is given.",
    )
    DEADLINE_EXCEEDED = (
        "DeadlineExceeded",
        "The run took longer than spec.activeDeadlineSeconds.",
    )
    POD_FAILED = ("PodFailed", "A pod failed; its message is given.")
    NEWCOMER_FAILED = (
        "NewcomerFailed",
        (
            "A pod failed that was to join the group, which trains on without it; the next one is "
            "tried a minute later."
        ),
    )
    POD_LOST = ("PodLost", "A pod was evicted or deleted, or its node was lost.")
