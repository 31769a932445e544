# Hooks that every recipe adds to those of its framework: verified checkpoints, a clean stop on a signal or on a
# non-finite loss, losses read from the GPU only when they are logged. Recipes read them as _base_.run_hooks, since
# their framework's default_hooks come from another base.
run_hooks = dict(
    runtime_info=dict(type='DeferredRuntimeInfoHook'),
    checkpoint=dict(type='VerifiedCheckpointHook'),
    preemption=dict(type='PreemptionHook'),
    finite_loss=dict(type='FiniteLossHook'))
