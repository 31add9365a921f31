"""What all tests share."""

import torch

# The tensors here are small: a second thread costs more than it gives, and a great deal on a busy machine.
torch.set_num_threads(1)
