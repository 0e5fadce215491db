"""The method once more, from the paper's formulas, as plainly as can be: loops, float64, one vector at a time.

Nothing is shared with the package. Tensors are torch's only so that gradients can be asked for. An image's feature
map is "channels rows cols"; cells are counted row by row; a list of cells is "cells dim".
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Box = tuple[float, float, float, float]


# --- vectors ----------------------------------------------------------------------------------------------------


def unit(vector: Tensor) -> Tensor:
    return vector / vector.square().sum().sqrt().clamp(min=1e-12)


def cosine(first: Tensor, second: Tensor) -> float:
    return float(unit(first) @ unit(second))


def cells_of(feature_map: Tensor) -> list[Tensor]:
    _, rows, cols = feature_map.shape
    return [feature_map[:, row, col] for row in range(rows) for col in range(cols)]


def info_nce(query: Tensor, positive: Tensor, negatives: list[Tensor], temperature: float) -> Tensor:
    """-log of the softmax share of the positive."""
    above = torch.exp(query @ positive / temperature)
    below = above
    for negative in negatives:
        below = below + torch.exp(query @ negative / temperature)
    return -torch.log(above / below)


# --- matching ---------------------------------------------------------------------------------------------------


def similarities(query_map: Tensor, key_map: Tensor) -> list[list[float]]:
    return [[cosine(query, key) for key in cells_of(key_map)] for query in cells_of(query_map)]


def best(values: list[float]) -> int:
    return max(range(len(values)), key=lambda place: values[place])


def match_by_features(similarity: list[list[float]]) -> list[int | None]:
    return [best(row) for row in similarity]


def match_mutually(similarity: list[list[float]]) -> list[int | None]:
    matches: list[int | None] = []
    for query, row in enumerate(similarity):
        key = best(row)
        column = [other[key] for other in similarity]
        matches.append(key if best(column) == query else None)
    return matches


def cell_center(box: Box, flipped: bool, rows: int, cols: int, cell: int) -> tuple[float, float]:
    """Where in the source image the middle of a cell lies."""
    x0, y0, x1, y1 = box
    row, col = cell // cols, cell % cols
    if flipped:
        col = cols - 1 - col
    return x0 + (x1 - x0) * (col + 0.5) / cols, y0 + (y1 - y0) * (row + 0.5) / rows


def cell_diagonal(box: Box, rows: int, cols: int) -> float:
    x0, y0, x1, y1 = box
    return math.sqrt(((x1 - x0) / cols) ** 2 + ((y1 - y0) / rows) ** 2)


def distances(
    query_box: Box, query_flipped: bool, key_box: Box, key_flipped: bool, rows: int, cols: int
) -> list[list[float]]:
    """From each query cell to each key cell, in diagonals of the larger cell."""
    larger = max(cell_diagonal(query_box, rows, cols), cell_diagonal(key_box, rows, cols))
    table = []
    for query in range(rows * cols):
        x, y = cell_center(query_box, query_flipped, rows, cols, query)
        row = []
        for key in range(rows * cols):
            key_x, key_y = cell_center(key_box, key_flipped, rows, cols, key)
            row.append(math.sqrt((x - key_x) ** 2 + (y - key_y) ** 2) / larger)
        table.append(row)
    return table


def match_by_geometry(distance: list[list[float]], radius: float) -> list[int | None]:
    nearest = [best([-value for value in row]) for row in distance]
    return [key if row[key] <= radius else None for key, row in zip(nearest, distance, strict=True)]


# --- the dense loss with the cells of the batch as negatives ----------------------------------------------------


def cell_negatives(
    keys: list[list[Tensor]], image: int, positive: int, distance: list[float], radius: float
) -> list[Tensor]:
    """Every key cell of every image, but the positive and what lies within the radius in the same image."""
    negatives = []
    for other, cells in enumerate(keys):
        for cell, key in enumerate(cells):
            if other == image and (cell == positive or distance[cell] <= radius):
                continue
            negatives.append(key)
    return negatives


# --- the encoders -----------------------------------------------------------------------------------------------


def project(weight: Tensor, bias: Tensor, vector: Tensor) -> Tensor:
    return weight.reshape(len(weight), -1) @ vector + bias


def head(weights: Mapping[str, Tensor], name: str, vector: Tensor) -> Tensor:
    """Two layers with a ReLU between; a 1x1 convolution is such a layer for one cell."""
    hidden = project(weights[f"{name}.layers.0.weight"], weights[f"{name}.layers.0.bias"], vector)
    hidden = torch.where(hidden > 0, hidden, torch.zeros_like(hidden))
    return project(weights[f"{name}.layers.2.weight"], weights[f"{name}.layers.2.bias"], hidden)


def patch_features(weights: Mapping[str, Tensor], image: Tensor, patch: int) -> Tensor:
    """The toy backbone of the tests: tanh of a linear map of each patch."""
    _, height, width = image.shape
    rows = []
    for top in range(0, height, patch):
        row = []
        for left in range(0, width, patch):
            pixels = image[:, top : top + patch, left : left + patch].reshape(-1)
            row.append(torch.tanh(project(weights["conv.weight"], weights["conv.bias"], pixels)))
        rows.append(torch.stack(row, dim=1))
    return torch.stack(rows, dim=1)


def pool_to_grid(feature_map: Tensor, grid: int) -> Tensor:
    """Mean over grid x grid parts, which overlap where the sides do not divide."""
    _, rows, cols = feature_map.shape
    pooled = []
    for row in range(grid):
        top, bottom = row * rows // grid, -(-(row + 1) * rows // grid)
        line = []
        for col in range(grid):
            left, right = col * cols // grid, -(-(col + 1) * cols // grid)
            parts = [feature_map[:, y, x] for y in range(top, bottom) for x in range(left, right)]
            line.append(sum(parts[1:], parts[0]) / len(parts))
        pooled.append(torch.stack(line, dim=1))
    return torch.stack(pooled, dim=1)


@dataclass
class Encoded:
    """One image through one encoder."""

    vector: Tensor  # dim, unit length
    cells: list[Tensor]  # each dim, unit length
    pooled: Tensor  # dim, unit length
    features: Tensor  # channels rows cols


def encode(weights: Mapping[str, Tensor], image: Tensor, patch: int, grid: int | None) -> Encoded:
    backbone = {name.removeprefix("backbone.model."): value for name, value in weights.items() if "backbone" in name}
    features = patch_features(backbone, image, patch)
    every = cells_of(features)
    vector = unit(head(weights, "global_head", sum(every[1:], every[0]) / len(every)))
    if grid is not None:
        features = pool_to_grid(features, grid)
    projected = [head(weights, "dense_head", cell) for cell in cells_of(features)]
    pooled = unit(sum(projected[1:], projected[0]) / len(projected))
    return Encoded(vector, [unit(cell) for cell in projected], pooled, features)


# --- a step -----------------------------------------------------------------------------------------------------


@dataclass
class View:
    pixels: Tensor  # batch channels height width
    boxes: list[Box]
    flipped: list[bool]


@dataclass
class Settings:
    patch: int
    grid: int | None
    temperature: float
    key_momentum: float
    dense_weight: float
    matching: str
    dense_negatives: str
    radius: float
    symmetric: bool


class Reference:
    """Query and key weights by name, and both queues, oldest key first."""

    def __init__(
        self,
        settings: Settings,
        query: Mapping[str, Tensor],
        key: Mapping[str, Tensor],
        global_queue: Tensor,
        dense_queue: Tensor | None,
    ) -> None:
        self.settings = settings
        self.query = {name: value.detach().double().clone().requires_grad_() for name, value in query.items()}
        self.key = {name: value.detach().double().clone() for name, value in key.items()}
        self.global_queue = deque(global_queue.double().clone().unbind(), maxlen=len(global_queue))
        self.dense_queue = None
        if dense_queue is not None:
            self.dense_queue = deque(dense_queue.double().clone().unbind(), maxlen=len(dense_queue))

    def step(self, first: View, second: View) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, global loss and dense loss; moves the key encoder and renews the queues of whole vectors."""
        settings = self.settings
        directions = [(first, second), (second, first)] if settings.symmetric else [(first, second)]
        queries = [self.encode_batch(self.query, query) for query, _ in directions]
        with torch.no_grad():
            for name, weight in self.key.items():
                momentum = settings.key_momentum
                self.key[name] = momentum * weight + (1 - momentum) * self.query[name].detach()
            keys = [self.encode_batch(self.key, key) for _, key in directions]
        global_loss = dense_loss = torch.zeros((), dtype=torch.float64)
        for encoded_queries, encoded_keys, views in zip(queries, keys, directions, strict=True):
            one_global, one_dense = self.losses(encoded_queries, encoded_keys, *views)
            global_loss = global_loss + one_global / len(directions)
            dense_loss = dense_loss + one_dense / len(directions)
        for encoded_keys in keys:
            for encoded in encoded_keys:
                self.global_queue.append(encoded.vector)
                if self.dense_queue is not None and settings.dense_negatives == "pooled":
                    self.dense_queue.append(encoded.pooled)
        loss = (1 - settings.dense_weight) * global_loss + settings.dense_weight * dense_loss
        return loss, global_loss, dense_loss

    def encode_batch(self, weights: Mapping[str, Tensor], view: View) -> list[Encoded]:
        return [encode(weights, image, self.settings.patch, self.settings.grid) for image in view.pixels.double()]

    def losses(
        self, queries: list[Encoded], keys: list[Encoded], query_view: View, key_view: View
    ) -> tuple[Tensor, Tensor]:
        settings = self.settings
        global_loss = torch.zeros((), dtype=torch.float64)
        dense_loss, counted = torch.zeros((), dtype=torch.float64), 0
        for image, (query, key) in enumerate(zip(queries, keys, strict=True)):
            one = info_nce(query.vector, key.vector, list(self.global_queue), settings.temperature)
            global_loss = global_loss + one / len(queries)
            distance = distances(
                query_view.boxes[image],
                query_view.flipped[image],
                key_view.boxes[image],
                key_view.flipped[image],
                *query.features.shape[1:],
            )
            for cell, match in enumerate(self.match(query, key, distance)):
                if match is None:
                    continue
                if self.dense_queue is None:
                    every = [other.cells for other in keys]
                    radius = math.inf if settings.dense_negatives == "others" else settings.radius
                    negatives = cell_negatives(every, image, match, distance[cell], radius)
                else:
                    negatives = list(self.dense_queue)
                positive = key.cells[match]
                dense_loss = dense_loss + info_nce(query.cells[cell], positive, negatives, settings.temperature)
                counted += 1
        return global_loss, dense_loss / max(counted, 1)

    def match(self, query: Encoded, key: Encoded, distance: list[list[float]]) -> list[int | None]:
        if self.settings.matching == "geometry":
            return match_by_geometry(distance, self.settings.radius)
        similarity = similarities(query.features.detach(), key.features)
        return match_mutually(similarity) if self.settings.matching == "mutual" else match_by_features(similarity)
