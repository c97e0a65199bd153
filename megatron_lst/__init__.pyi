"""The types of the API, which `__init__.py` imports when it is used."""

from lst_prep.tokenizer import load_tokenizer as load_tokenizer
from megatron_lst.chat import ChatFormat as ChatFormat
from megatron_lst.chat import ChatTemplate as ChatTemplate
from megatron_lst.chat import Speech as Speech
from megatron_lst.config import Config as Config
from megatron_lst.config import load_config as load_config
from megatron_lst.data.patches import patch_document as patch_document
from megatron_lst.data.stream import RowStream as RowStream
from megatron_lst.documents.schema import Document as Document
from megatron_lst.documents.shards import ShardSet as ShardSet
from megatron_lst.engines import Engine as Engine
from megatron_lst.engines import StepResult as StepResult
from megatron_lst.engines import open_engine as open_engine
from megatron_lst.errors import DamagedDataError as DamagedDataError
from megatron_lst.errors import LstError as LstError
from megatron_lst.errors import TrainingFault as TrainingFault
from megatron_lst.errors import UserError as UserError
from megatron_lst.flops import parameters as parameters
from megatron_lst.flops import row_flops as row_flops
from megatron_lst.inference import Conversation as Conversation
from megatron_lst.inference import Export as Export
from megatron_lst.inference import GenerationSettings as GenerationSettings
from megatron_lst.inference import generate as generate
from megatron_lst.inference import load_export as load_export
from megatron_lst.patching.row import Chunk as Chunk
from megatron_lst.patching.row import Row as Row

__version__: str
