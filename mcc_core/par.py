import torch
import torch.nn.functional as F


def neigh(x, dil):
    out = []
    H, W = x.shape[-2:]
    for d in dil:
        p = F.pad(x, [d] * 4, mode="replicate")
        for dy in (-d, 0, d):
            for dx in (-d, 0, d):
                if dy or dx:
                    out.append(p[..., d + dy : d + dy + H, d + dx : d + dx + W])
    return torch.stack(out, 2)


def refine(img, s, c):
    s = F.interpolate(s, size=img.shape[-2:], mode="bilinear", align_corners=True)
    n = neigh(img, c.dilations)
    a = -(((n - img[:, :, None]).abs() / (n.std(2, keepdim=True) + 1e-8) / c.color_weight) ** 2).mean(1, keepdim=True)
    pos = torch.tensor(
        [(2**0.5 if dy and dx else 1.0) * d for d in c.dilations for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
    )
    p = -((pos / (pos.std() + 1e-8) / c.color_weight) ** 2)
    w = a.softmax(2) + c.position_weight * p.softmax(0).view(1, 1, -1, 1, 1)
    for _ in range(c.iterations):
        s = (neigh(s, c.dilations) * w).sum(2)
    return s
