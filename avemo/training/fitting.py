"""What a model fits and does not train, such as the weights of a fusion of decisions."""

import lightning.pytorch as pl


class FitOnValidation(pl.Callback):
    """Before each validation lets a model that has a `fit` fit on the validation split."""

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        fit = getattr(pl_module.model, "fit", None)
        if fit:
            batches = trainer.val_dataloaders
            assert batches is not None
            fit(pl_module.transfer_batch_to_device(b, pl_module.device, 0) for b in batches)
