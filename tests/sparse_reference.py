"""Slow references for the tests, written from the paper: the sparse forward, the loss, and the official sparse file.

A set of sites is a dictionary from (row, column) to a vector of shape (C,). A masked site has no entry, so nothing can
read it. ``weights`` is a dictionary of tensors in the names of ConvNeXtV2's state dict.
"""

import torch
import torch.nn.functional as F

PATCH = 32


def sparse_reference(weights, depths, images, cells, valid=None):
    """Return the maps (B, C, H / s, W / s) of strides s = 4, 8, 16 and 32, zero at masked sites.

    Maps pass through ``norm0`` to ``norm3`` where the weights have them. Images have shape (B, 3, H, W), and ``cells``
    lists the visible cells of each image. ``valid`` (B, H, W) is True at pixels that there are, by default all.
    """
    valid = torch.ones(len(images), *images.shape[2:]) if valid is None else valid
    maps = [run_image(weights, depths, *one) for one in zip(images, cells, valid)]
    return [torch.stack(one) for one in zip(*maps)]


def run_image(weights, depths, image, visible, valid):
    _, height, width = image.shape
    pixels = zip(((y, x) for y in range(height) for x in range(width)), image.flatten(1).T)
    sites = {(y, x): pixel for (y, x), pixel in pixels if y // PATCH * (width // PATCH) + x // PATCH in visible}
    sites = {(y, x): pixel for (y, x), pixel in sites.items() if valid[y, x]}
    maps = []
    for stage, depth in enumerate(depths):
        name = f'downsample_layers.{stage}'
        if stage == 0:
            sites = normalise(weights, f'{name}.1', convolve_patches(weights, f'{name}.0', sites, 4))
        else:
            sites = convolve_patches(weights, f'{name}.1', normalise(weights, f'{name}.0', sites), 2)
        for number in range(depth):
            sites = run_block(weights, f'stages.{stage}.{number}', sites)
        outputs = normalise(weights, f'norm{stage}', sites) if f'norm{stage}.weight' in weights else sites
        stride = 4 * 2**stage
        empty = torch.zeros_like(next(iter(outputs.values())))
        rows = [[outputs.get((y, x), empty) for x in range(width // stride)] for y in range(height // stride)]
        maps.append(torch.stack([torch.stack(row, 1) for row in rows], 1))
    return maps


def run_block(weights, name, sites):
    """Apply one block: depthwise convolution, LayerNorm, MLP with GRN between its linears, residual."""
    branch = normalise(weights, f'{name}.norm', convolve_depthwise(weights, f'{name}.depthwise_conv', sites))
    hidden = {site: F.gelu(linear(weights, f'{name}.pointwise_conv1', value)) for site, value in branch.items()}
    norm = torch.stack(list(hidden.values())).square().sum(0).sqrt()  # (4C,), over the sites of this image
    response = norm / (norm.mean() + 1e-6)
    gamma, beta = weights[f'{name}.grn.gamma'], weights[f'{name}.grn.beta']
    hidden = {site: gamma * value * response + beta + value for site, value in hidden.items()}
    return {site: sites[site] + linear(weights, f'{name}.pointwise_conv2', value) for site, value in hidden.items()}


def linear(weights, name, value):
    return weights[f'{name}.weight'] @ value + weights[f'{name}.bias']


def normalise(weights, name, sites):
    weight, bias = weights[f'{name}.weight'], weights[f'{name}.bias']
    return {site: F.layer_norm(value, value.shape, weight, bias, 1e-6) for site, value in sites.items()}


def convolve_patches(weights, name, sites, size):
    """Convolve with a kernel and a stride of ``size``. The patch of an output site is visible as a whole or in part."""
    weight, bias = weights[f'{name}.weight'], weights[f'{name}.bias']
    outputs = {}
    for y, x in dict.fromkeys((y // size, x // size) for y, x in sites):
        offsets = [(i, j) for i in range(size) for j in range(size)]
        there = [(i, j) for i, j in offsets if (size * y + i, size * x + j) in sites]
        outputs[y, x] = bias + sum(weight[:, :, i, j] @ sites[size * y + i, size * x + j] for i, j in there)
    return outputs


def convolve_depthwise(weights, name, sites):
    """Convolve with a 7 x 7 kernel per channel over the neighbours that are visible."""
    weight, bias = weights[f'{name}.weight'][:, 0], weights[f'{name}.bias']
    outputs = {}
    for y, x in sites:
        near = [(i, j) for i in range(7) for j in range(7) if (y + i - 3, x + j - 3) in sites]
        outputs[y, x] = bias + sum(weight[:, i, j] * sites[y + i - 3, x + j - 3] for i, j in near)
    return outputs


def loss_reference(head, decoded, images, cells):
    """Return FCMAE's loss: the mean squared error over masked cells against pixels normalised per cell.

    ``decoded`` (B, C, H / s, W / s) predicts a patch of s x s pixels per site: s = 32 for all decoders but the U-Net.
    """
    weight, bias = head.pred.weight, head.pred.bias
    channels, height, width = images.shape[1:]
    stride = height // decoded.shape[2]
    errors = []
    for image, maps, visible in zip(images, decoded, cells):
        for cell in set(range(height // PATCH * (width // PATCH))) - set(visible):
            top, left = PATCH * (cell // (width // PATCH)), PATCH * (cell % (width // PATCH))
            pixels = image[:, top : top + PATCH, left : left + PATCH]
            target = (pixels - pixels.mean()) / (pixels.var() + 1e-6).sqrt()
            for y in range(0, PATCH, stride):
                for x in range(0, PATCH, stride):
                    site = maps[:, (top + y) // stride, (left + x) // stride]
                    predicted = (weight @ site + bias).view(stride, stride, channels).permute(2, 0, 1)
                    errors.append((predicted - target[:, y : y + stride, x : x + stride]).square())
    return torch.stack(errors).mean()


def official_sparse_file(weights):
    """Return the weights as the official pretraining script saves them, in which a kernel's row offset runs fastest."""
    out = {'mask_token': torch.zeros(1, 512, 1, 1), 'pred.bias': torch.zeros(3072)}
    for key, value in weights.items():
        name = 'encoder.' + key
        if key.startswith('downsample_layers.0'):
            out[name] = value
        elif key.startswith('downsample_layers') and key.endswith('1.weight'):
            kernel = torch.zeros(4, value.shape[1], value.shape[0])
            for row in range(2):
                for column in range(2):
                    kernel[column * 2 + row] = value[:, :, row, column].t()
            out[name.replace('weight', 'kernel')] = kernel
        elif key.startswith('downsample_layers') and key.endswith('1.bias'):
            out[name] = value[None]
        elif key.startswith('downsample_layers'):
            out[name.replace('.0.weight', '.0.ln.weight').replace('.0.bias', '.0.ln.bias')] = value
        elif 'depthwise_conv.weight' in key:
            kernel = torch.zeros(49, len(value))
            for row in range(7):
                for column in range(7):
                    kernel[column * 7 + row] = value[:, 0, row, column]
            out[name.replace('depthwise_conv.weight', 'dwconv.kernel')] = kernel
        elif 'depthwise_conv' in key or 'grn' in key:
            out[name.replace('depthwise_conv', 'dwconv')] = value[None]
        else:
            name = name.replace('.norm.', '.norm.ln.')
            out[name.replace('pointwise_conv1', 'pwconv1.linear').replace('pointwise_conv2', 'pwconv2.linear')] = value
    return out
