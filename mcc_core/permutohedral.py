import math

import torch


def bilateral_filter(images, values, sr, sx):
    out = []
    for b in range(len(images)):
        out.append(one(images[b], values[b], sr, sx))
    return torch.stack(out)


def one(img, val, sr, sx):
    dt = val.dtype
    val = val.float()
    img = img.float()
    H, W = img.shape[-2:]
    d = 5
    y, x = torch.meshgrid(torch.arange(H).float(), torch.arange(W).float(), indexing="ij")
    f = torch.stack([x / sx, y / sx, img[0] / sr, img[1] / sr, img[2] / sr], -1).view(-1, 5)
    sc = torch.tensor([1 / math.sqrt((i + 1) * (i + 2)) for i in range(d)]) * math.sqrt(2 / 3) * (d + 1)
    cf = f * sc
    el = torch.zeros(len(f), d + 1)
    sm = torch.zeros(len(f))
    for j in range(d, 0, -1):
        el[:, j] = sm - j * cf[:, j - 1]
        sm = sm + cf[:, j - 1]
    el[:, 0] = sm
    v = el / (d + 1)
    up = v.ceil() * (d + 1)
    dn = v.floor() * (d + 1)
    rem = torch.where(up - el < el - dn, up, dn)
    s = (rem.sum(1) / (d + 1)).round().long()
    di = el - rem
    rank = torch.zeros(len(f), d + 1, dtype=torch.long)
    for i in range(d):
        for j in range(i + 1, d + 1):
            lt = di[:, i] < di[:, j]
            rank[:, i] += lt
            rank[:, j] += ~lt
    rank += s[:, None]
    lo = rank < 0
    hi = rank > d
    rank = torch.where(lo, rank + d + 1, torch.where(hi, rank - d - 1, rank))
    rem = torch.where(lo, rem + d + 1, torch.where(hi, rem - d - 1, rem))
    bary = torch.zeros(len(f), d + 2)
    v = (el - rem) / (d + 1)
    bary.scatter_add_(1, d - rank, v)
    bary.scatter_add_(1, d + 1 - rank, -v)
    bary[:, 0] += 1 + bary[:, d + 1]
    bary = bary[:, : d + 1]
    can = torch.tensor([[r if j <= d - r else r - (d + 1) for j in range(d + 1)] for r in range(d + 1)])
    keys = rem.long()[:, None, :d] + can[:, rank[:, :d]].permute(1, 0, 2)
    flat = keys.reshape(-1, d)
    mn = flat.amin(0) - d - 1
    rng = flat.amax(0) - mn + d + 2
    mul = torch.tensor([1] + torch.cumprod(rng, 0)[:-1].tolist())
    code = ((flat - mn) * mul).sum(1)
    u, inv = code.unique(return_inverse=True)
    M = len(u)
    K = val.shape[0]
    vv = val.reshape(K, -1).T
    table = torch.zeros(M + 1, K, dtype=val.dtype)
    table.index_add_(0, inv, (bary[:, :, None] * vv[:, None]).reshape(-1, K))
    one_ = mul.sum()
    for j in range(d + 1):
        off = -one_ + (mul[j] * (d + 1) if j < d else 0)

        def look(c):
            p = torch.searchsorted(u, c).clamp(max=M - 1)
            return torch.where(u[p] == c, p, M)

        n1, n2 = look(u + off), look(u - off)
        table[:M] = table[:M] + 0.5 * (table[n1] + table[n2])
    out = (table[inv].view(-1, d + 1, K) * bary[:, :, None]).sum(1) / (1 + 2**-d)
    return out.T.reshape(K, H, W).to(dt)
