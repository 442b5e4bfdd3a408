"""Requests under way: decoded, their steps run, pieces taken and sent, the outputs made an answer.

Rules: a piece belongs to one plan, request and payload; one that comes before its request is kept
a while; what was computed under a plan that is void by now is dropped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from agent.errors import WireError
from agent.geometry import size
from agent.wire.messages import Answer, Piece
from agent.wire.tensors import itemsize
from agent.worker import events as ev
from agent.worker.early import EarlyPieces
from agent.worker.events import Effect, Held, RequestKey
from agent.worker.execution import Execution
from agent.worker.meter import Transfer
from agent.worker.overload import unanswered
from agent.worker.pieces import check_piece, chunked, held
from agent.worker.requests import Request, State

if TYPE_CHECKING:
    from agent.wire.program import Program, Send
    from agent.worker.plans import Plan, Plans


class Runs:
    """Runs `requests` under `plans`."""

    def __init__(self, requests: dict[RequestKey, Request], plans: Plans) -> None:
        self._requests = requests
        self._plans = plans
        self.early = EarlyPieces()

    def start(self, request: Request, plan: Plan, program: Program, now: float) -> list[Effect]:
        """Begin a request under a plan; a picture that fits it is not decoded again."""
        if request.plan is not None and not _same_input(request.plan, plan):
            request.image = None
        request.plan = plan
        request.execution = Execution(program)
        if request.image is None:
            request.move(State.DECODING)
            return []
        request.move(State.RUNNING)
        return self._feed_image(request, now)

    def next_job(self) -> Effect | None:
        """Return what the executor does next: the earliest step of who has its turn first."""
        for request in unanswered(self._requests.values()):
            job = self._job_of(request)
            if job is not None:
                return job
        return None

    def find(self, key: RequestKey, plan: str) -> Request | None:
        """Return a request that runs under plan `plan`, if it still does."""
        request = self._requests.get(key)
        if request is None or request.plan is None or request.plan.digest != plan:
            return None
        live = request.state in (State.DECODING, State.RUNNING, State.CONCLUDING)
        return request if live else None

    def decoded(self, event: ev.Decoded, now: float) -> list[Effect]:
        """Take a decoded picture."""
        request = self.find(event.key, event.plan)
        if request is None:
            return []
        request.image = event.image
        request.meter.decode_s += event.seconds
        request.meter.decoded = now
        request.move(State.RUNNING)
        return self._feed_image(request, now)

    def step_finished(self, event: ev.StepFinished, now: float) -> list[Effect]:
        """Take what a step computed."""
        request = self.find(event.key, event.plan)
        if request is None or request.execution is None:
            return []
        request.meter.steps.append((event.step, event.started, event.ended))
        sends = request.execution.wrote(event.step, event.arrays)
        return self._send(request, sends, now) + self._maybe_conclude(request, now)

    def concluded(self, event: ev.Concluded, now: float) -> list[Effect]:
        """Publish the answer that was made of the outputs."""
        request = self.find(event.key, event.plan)
        if request is None or request.plan is None:
            return []
        request.move(State.ANSWERED)
        request.meter.answered = now
        header = request.plan.header
        answer = Answer(
            request=request.key.request,
            model=request.key.model,
            input=request.key.input,
            ok=True,
            outputs=event.outputs,
            result=event.result,
            elapsed_ms=round((now - request.arrived) * 1e3, 3),
            epoch=header.epoch,
            devices=header.devices,
        )
        return [ev.PublishAnswer(answer, request.reply)]

    def piece_arrived(self, event: ev.PieceArrived, now: float) -> list[Effect]:
        """Take a piece, or keep it until its request runs."""
        piece = event.piece
        plan = next((p for p in self._plans.active.values() if p.digest == piece.plan), None)
        model = plan.header.model if plan else ""
        request = self._requests.get(RequestKey(model, piece.request, piece.input))
        if request is None or request.state in (State.WAITING, State.DECODING):
            dropped = self.early.add(piece, event.nbytes, now)
            if dropped:
                return [ev.Log("warning", f"dropped {dropped} early pieces: too many")]
            return []
        return self._take_piece(request, piece, event.nbytes, now, now)

    def piece_sent(self, event: ev.PieceSent, now: float) -> list[Effect]:
        """Note a packed piece, of which nobody knew before how large it is."""
        request = self.find(event.key, event.plan)
        if request is not None:
            sent = Transfer(event.tensor, event.region, event.due, now, event.nbytes, event.to)
            request.meter.sends.append(sent)
        return []

    def _feed_image(self, request: Request, now: float) -> list[Effect]:
        execution, plan = request.execution, request.plan
        if execution is None or plan is None:
            return []
        spec = execution.program.tensors[execution.program.input]
        region = tuple((0, extent) for extent in spec.shape)
        sends = execution.add(execution.program.input, Held(region, request.image))
        effects = self._send(request, sends, now)
        early = self.early.take(plan.digest, request.key.request, request.key.input)
        for arrived, nbytes, piece in early:
            effects += self._take_piece(request, piece, nbytes, arrived, now)
        return effects

    def _take_piece(
        self, request: Request, piece: Piece, nbytes: int, arrived: float, now: float
    ) -> list[Effect]:
        execution, plan = request.execution, request.plan
        if execution is None or plan is None or request.state is not State.RUNNING:
            return []
        try:
            check_piece(piece, execution.program)
        except WireError as error:
            text = f"refused a piece: {error}"
            key = request.key
            return [ev.Log("warning", text, key.request, key.model, plan.header.epoch)]
        transfer = Transfer(piece.tensor, piece.region, arrived, arrived, nbytes)
        request.meter.receives.append(transfer)
        sends = execution.add(piece.tensor, held(piece, execution.program))
        return self._send(request, sends, now) + self._maybe_conclude(request, now)

    def _maybe_conclude(self, request: Request, now: float) -> list[Effect]:
        execution = request.execution
        if execution is None or not execution.answerable or request.state is not State.RUNNING:
            return []
        request.finished = now
        request.move(State.CONCLUDING)
        return []

    def _send(self, request: Request, sends: list[Send], now: float) -> list[Effect]:
        execution, plan = request.execution, request.plan
        if execution is None or plan is None:
            return []
        effects: list[Effect] = []
        for send in sends:
            spec = execution.program.tensors[send.part.tensor]
            nbytes = size(send.part.region) * itemsize(spec.dtype)
            if send.coding == "plain":
                request.meter.sends.append(
                    Transfer(send.part.tensor, send.part.region, now, now, nbytes, send.to)
                )
            pieces = execution.pieces(send.part)
            effects += [
                ev.SendPiece(
                    request.key,
                    plan.digest,
                    send.to,
                    send.part.tensor,
                    region,
                    pieces,
                    send.coding,
                )
                for region in chunked(send.part.region, itemsize(spec.dtype))
            ]
        return effects

    @staticmethod
    def _job_of(request: Request) -> Effect | None:
        execution, plan = request.execution, request.plan
        if execution is None or plan is None:
            return None
        if request.state is State.DECODING:
            content_type = request.reply.content_type
            return ev.Decode(request.key, plan.digest, request.payload, content_type)
        if request.state is State.CONCLUDING:
            outputs = tuple(execution.pieces(part) for part in execution.program.answers)
            wanted = request.reply.tensors
            return ev.Conclude(request.key, plan.digest, request.image, outputs, wanted)
        if request.state is State.RUNNING and execution.ready:
            number = execution.ready.pop(0)
            inputs = tuple(execution.pieces(r) for r in execution.program.steps[number].reads)
            return ev.Run(request.key, plan.digest, number, inputs)
        return None


def _same_input(old: Plan, new: Plan) -> bool:
    if old.program is None or new.program is None:
        return False
    old_spec = old.program.tensors[old.program.input]
    new_spec = new.program.tensors[new.program.input]
    return old_spec == new_spec and old.header.manifest == new.header.manifest
