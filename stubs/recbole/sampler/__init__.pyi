from recbole.sampler.sampler import Sampler as Sampler
