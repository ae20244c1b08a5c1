"""The gRPC services that kubelet calls: csi.v1 Identity and Node, and the registration. Only this module knows gRPC.

A service is a table of its methods with their messages, which gRPC serves as it is; what is in no table it answers
UNIMPLEMENTED. Whatever goes wrong in a method becomes a status with one line that can be read in the pod's events.
Requests are never logged: they hold the pod's token.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import Message

from shoal_csi import DRIVER_NAME, request
from shoal_csi.generated import csi_pb2, pluginregistration_pb2
from shoal_csi.publishing import Publisher
from shoal_csi.refusals import Refused

CALLS_AT_ONCE = 16
"""Each waits for the API server or the kernel, not for the processor."""
CSI_VERSION = "1.0.0"
"""What kubelet compares: any 1.x says this."""

log = logging.getLogger("shoal.csi")


class Method(NamedTuple):
    """One call: what does it, and its message in."""

    answer: Callable[[Any], Message]
    takes: type[Message]


def identity(version: str) -> Mapping[str, Method]:
    """csi.v1.Identity."""
    return {
        "GetPluginInfo": Method(
            lambda _: csi_pb2.GetPluginInfoResponse(name=DRIVER_NAME, vendor_version=version),
            csi_pb2.GetPluginInfoRequest,
        ),
        "GetPluginCapabilities": Method(
            lambda _: csi_pb2.GetPluginCapabilitiesResponse(), csi_pb2.GetPluginCapabilitiesRequest
        ),
        # Ready whenever it answers: an API server that is away is no reason to start the driver anew.
        "Probe": Method(lambda _: csi_pb2.ProbeResponse(ready={"value": True}), csi_pb2.ProbeRequest),
    }


def node(publisher: Publisher, node_id: str) -> Mapping[str, Method]:
    """csi.v1.Node."""

    def publish(message: csi_pb2.NodePublishVolumeRequest) -> Message:
        _check_paths(message.volume_id, message.target_path)
        _check_capability(message)
        asked = request.parse(
            message.volume_id, message.target_path, dict(message.volume_context), dict(message.secrets)
        )
        publisher.publish(asked)
        return csi_pb2.NodePublishVolumeResponse()

    def unpublish(message: csi_pb2.NodeUnpublishVolumeRequest) -> Message:
        _check_paths(message.volume_id, message.target_path)
        publisher.unpublish(message.volume_id, message.target_path)
        return csi_pb2.NodeUnpublishVolumeResponse()

    return {
        "NodePublishVolume": Method(publish, csi_pb2.NodePublishVolumeRequest),
        "NodeUnpublishVolume": Method(unpublish, csi_pb2.NodeUnpublishVolumeRequest),
        "NodeGetCapabilities": Method(
            lambda _: csi_pb2.NodeGetCapabilitiesResponse(), csi_pb2.NodeGetCapabilitiesRequest
        ),
        "NodeGetInfo": Method(lambda _: csi_pb2.NodeGetInfoResponse(node_id=node_id), csi_pb2.NodeGetInfoRequest),
    }


def registration(endpoint: str, registered: Callable[[bool, str], None]) -> Mapping[str, Method]:
    """pluginregistration.Registration; `registered` hears what kubelet thinks of us."""

    def notify(message: pluginregistration_pb2.RegistrationStatus) -> Message:
        registered(message.plugin_registered, message.error)
        return pluginregistration_pb2.RegistrationStatusResponse()

    return {
        "GetInfo": Method(
            lambda _: pluginregistration_pb2.PluginInfo(
                type="CSIPlugin", name=DRIVER_NAME, endpoint=endpoint, supported_versions=[CSI_VERSION]
            ),
            pluginregistration_pb2.InfoRequest,
        ),
        "NotifyRegistrationStatus": Method(notify, pluginregistration_pb2.RegistrationStatus),
    }


class Door:
    """Services on one Unix socket, which only root may open; what lay there before is gone."""

    def __init__(self, path: Path, services: Mapping[str, Mapping[str, Method]]) -> None:
        self.path = path
        self._server = grpc.server(futures.ThreadPoolExecutor(CALLS_AT_ONCE, thread_name_prefix="grpc"))
        for name, methods in services.items():
            handlers = {method: _handler(name, method, found) for method, found in methods.items()}
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        before = os.umask(0o077)
        try:
            self._server.add_insecure_port(f"unix:{path}")
        except RuntimeError as error:
            raise OSError(f"{path}: no socket can be made there: {error}") from error
        finally:
            os.umask(before)
        self._server.start()

    def close(self, grace_s: float) -> threading.Event:
        """Take no more calls; the event is set when the last has ended, at the latest after `grace_s`."""
        ended = self._server.stop(grace_s)
        self.path.unlink(missing_ok=True)
        return ended


def _handler(service: str, name: str, method: Method) -> Any:
    def answer(message: Message, context: grpc.ServicerContext) -> Message:
        try:
            return method.answer(message)
        except Refused as refused:
            code, text = refused.code, str(refused)
        except OSError as error:
            code, text = "INTERNAL", f"{error.filename or name}: {error.strerror or error}"
        except Exception:
            log.exception("%s/%s", service, name)
            code, text = "INTERNAL", "a bug in the driver; its log on this node has more"
        log.log(logging.INFO if code == "ABORTED" else logging.WARNING, "%s: %s: %s", name, code, text)
        context.abort(getattr(grpc.StatusCode, code), text)
        raise AssertionError("abort raises")

    return grpc.unary_unary_rpc_method_handler(
        answer, request_deserializer=method.takes.FromString, response_serializer=_serialized
    )


def _serialized(message: Message) -> bytes:
    return message.SerializeToString()


def _check_paths(volume_id: str, target_path: str) -> None:
    if not volume_id:
        raise Refused("INVALID_ARGUMENT", "volume_id: missing")
    if not target_path.startswith("/"):
        raise Refused("INVALID_ARGUMENT", f"target_path: {target_path!r} is not an absolute path")


def _check_capability(message: csi_pb2.NodePublishVolumeRequest) -> None:
    if not message.HasField("volume_capability"):
        raise Refused("INVALID_ARGUMENT", "volume_capability: missing")
    if message.volume_capability.HasField("block"):
        raise Refused("INVALID_ARGUMENT", "volume_capability: the volume is a directory, never a block device")
    if message.volume_capability.mount.fs_type:
        raise Refused("INVALID_ARGUMENT", f"fsType: {message.volume_capability.mount.fs_type!r}: the volume has none")
