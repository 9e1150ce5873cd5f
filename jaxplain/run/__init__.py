"""A dataset on a mesh: batches, compilation, the store, resuming."""

from jaxplain.run.batch import batch_explainer as batch_explainer
from jaxplain.run.engine import run as run
from jaxplain.run.images import ImageFolder as ImageFolder
from jaxplain.run.packing import Record as Record
from jaxplain.run.parts import Summary as Summary
from jaxplain.run.processes import Processes as Processes
from jaxplain.run.records import Records as Records
from jaxplain.run.records import load as load
from jaxplain.run.verify import Verification as Verification
from jaxplain.run.verify import verify as verify
