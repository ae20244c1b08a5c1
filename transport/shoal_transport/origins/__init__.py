"""Where bytes come from on a miss: object stores, web servers, files. Used by nodes, and by clients without a node."""

from shoal_transport.origins.interface import ObjectMeta, shown
from shoal_transport.origins.reader import Origins

__all__ = ["ObjectMeta", "Origins", "shown"]
