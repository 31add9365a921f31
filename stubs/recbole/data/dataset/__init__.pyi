from recbole.data.dataset import dataset as dataset
from recbole.data.dataset.dataset import Dataset as Dataset
