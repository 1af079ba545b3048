"""Records tests/golden/quant_formats: a linear layer as each tool packs it, and what that tool's own code unpacks.

usage: golden_quant_formats.py OUT      (needs torch, compressed-tensors, nvidia-modelopt and the file of auto-gptq)

OUT/<name>.json is config.json with its quantization_config; OUT/<name>.safetensors holds the layer "l" and "expected",
its weights [8,256] ([32,256] of GPTQ) in float32. Weights follow from a seed. Made once: the tests need none of these packages.
"""

import importlib.util
import json
import sys
from pathlib import Path

import modelopt
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from modelopt.torch.quantization.qtensor import NVFP4QTensor
from safetensors.torch import save_file

ROWS, COLUMNS = 8, 256


def weight(seed):
    torch.manual_seed(seed)
    rows = torch.rand(ROWS, 1) * 3 + 0.05  # so that scales differ
    return (torch.randn(ROWS, COLUMNS) * rows / 16).to(torch.bfloat16).float()


def save(out, name, quantization, tensors, expected):
    config = {"model_type": "llama", "quantization_config": quantization}
    (out / f"{name}.json").write_text(json.dumps(config, indent=1) + "\n")
    layer = {f"l.{key}": value.contiguous() for key, value in tensors.items()}
    save_file({**layer, "expected": expected.float().contiguous()}, str(out / f"{name}.safetensors"))


def groups_of(w, args):
    """The least and greatest weight of what shares a scale, as an observer of the library has them."""
    if args.strategy in ("group", "tensor_group"):
        w = w.unflatten(1, (-1, args.group_size))
        return w.amin(2), w.amax(2)
    if args.strategy == "block":
        n, k = args.block_structure
        w = w.reshape(ROWS // n, n, COLUMNS // k, k)
        return w.amin((1, 3)), w.amax((1, 3))
    return w.amin(1, keepdim=True), w.amax(1, keepdim=True)


def compressed(out, name, form, **weights):
    args = dict(num_bits=4, type="float", symmetric=True, dynamic=False) | weights
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    w = weight(len(name))
    least, most = groups_of(w, scheme.weights)
    state = {"weight": w}
    if scheme.weights.strategy == "tensor_group":
        state["weight_global_scale"] = generate_gparam(w.min(), w.max()).reshape(1)
    scale, zero = calculate_qparams(least, most, scheme.weights, global_scale=state.get("weight_global_scale"))
    state |= {"weight_scale": scale, "weight_zero_point": zero}
    compressor = BaseCompressor.get_value_from_registry(form)
    packed = compressor.compress(state, scheme)
    expected = compressor.decompress(packed, scheme)["weight"]
    group = {"targets": ["Linear"], "weights": json.loads(scheme.weights.model_dump_json())}
    quantization = {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        "quantization_status": "compressed",
    }
    save(out, name, quantization, packed, expected)


def optimized(out):
    w = weight(1).bfloat16()
    packed, scale, factor = NVFP4QTensor.quantize(w, 16, try_tensorrt=False)
    expected = packed.dequantize(torch.float32, scale=scale, double_scale=factor, block_sizes={-1: 16})
    tensors = {
        "weight": packed._quantized_data,
        "weight_scale": scale,
        "weight_scale_2": factor,
        "input_scale": torch.tensor(0.01),
    }
    producer = {"name": "modelopt", "version": modelopt.__version__}
    quantization = {
        "quant_method": "modelopt",
        "quant_algo": "NVFP4",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "group_size": 16}}},
        "ignore": ["lm_head"],
        "producer": producer,
    }
    save(out, "modelopt_nvfp4", quantization, tensors, expected)


def gptq(out, bits, group):
    """AutoGPTQ's layer, of which one file needs no CUDA; a group of -1: all inputs share a scale."""
    package = importlib.util.find_spec("auto_gptq").submodule_search_locations[0]
    file = Path(package, "nn_modules", "qlinear", "qlinear_cuda_old.py")
    spec = importlib.util.spec_from_file_location("qlinear_cuda_old", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    linear = torch.nn.Linear(COLUMNS, 32, bias=False)
    linear.weight.data = torch.cat([weight(bits + i) for i in range(32 // ROWS)]).half()
    least, most = (f(linear.weight.data.float().unflatten(1, (-1, group if group > 0 else COLUMNS)), 2) for f in (torch.amin, torch.amax))
    scales = ((most - least) / (2**bits - 1)).half()
    zeros = torch.clamp(torch.round(-least / scales.float()), 1, 2**bits - 1)  # 0 can't be stored
    layer = module.QuantLinear(bits, group, COLUMNS, 32, bias=False)
    layer.pack(linear, scales, zeros, None)
    tensors = {name: getattr(layer, name) for name in ("qweight", "qzeros", "scales", "g_idx")}
    expected = layer.float()(torch.eye(COLUMNS)).T
    method = {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": False, "sym": False, "checkpoint_format": "gptq"}
    save(out, f"gptq_{bits}", method, tensors, expected)


def main(out):
    out.mkdir(parents=True, exist_ok=True)
    compressed(out, "int4", "pack-quantized", type="int", strategy="group", group_size=128)
    compressed(out, "nvfp4", "nvfp4-pack-quantized", strategy="tensor_group", group_size=16)
    compressed(out, "mxfp4", "mxfp4-pack-quantized", strategy="group", group_size=32, scale_dtype="torch.uint8")
    eight = dict(num_bits=8)
    compressed(out, "mxfp8", "mxfp8-quantized", strategy="group", group_size=32, scale_dtype="torch.uint8", **eight)
    compressed(out, "float8_channel", "float-quantized", strategy="channel", **eight)
    compressed(out, "float8_block", "naive-quantized", strategy="block", block_structure=[4, 4], **eight)
    optimized(out)
    gptq(out, 2, 64)
    gptq(out, 3, 32)
    gptq(out, 4, -1)
    gptq(out, 8, 32)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
