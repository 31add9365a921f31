from recbole.trainer.trainer import Trainer as Trainer
