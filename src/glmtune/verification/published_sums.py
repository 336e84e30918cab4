"""SHA-256 of files of published checkpoints, for folders that no list of their hub came with."""

from __future__ import annotations

PUBLISHED_SUMS: dict[str, dict[str, str]] = {
    "chatglm-6b": {
        "ice_text.model": "5e974d9a69c242ce014c88c2b26089270f6198f3c0b700a887666cd3e816f17e",
        "pytorch_model-00001-of-00008.bin": "14dafdc73e1b1da131fec6668f58774bf6eab1215963f92bdd5c7d81dc6ca383",
        "pytorch_model-00002-of-00008.bin": "8678043a60cd2ce373543fffe8de9508a8cf4266d2c0f088d52167cae74af839",
        "pytorch_model-00003-of-00008.bin": "84744300522f53f778744012cd95ffd6f0e533515e53034035fe7cca5daf70b0",
        "pytorch_model-00004-of-00008.bin": "43eb8279007c062e39fd44e536647bc5d0069773c3a69ca087f60aa3b85894d5",
        "pytorch_model-00005-of-00008.bin": "ccfc9d265ddc00a00e8d6c4f5328c381d64eb2c68e06b5214f4b73bed149e41d",
        "pytorch_model-00006-of-00008.bin": "f13d68803861c8575a9702c4923e1ef1ed601d8ca17ca62841c32860be24e597",
        "pytorch_model-00007-of-00008.bin": "570c6a9aad83b2b383765e27f6bddcad40efddeb84f8490aea29dc0e43666ac5",
        "pytorch_model-00008-of-00008.bin": "39d30a1d55c7e0138ef8b85190f927851f0fda5483a6465b104f9696ceaec8b4",
    },
    "chatglm2-6b": {
        "tokenizer.model": "e7dc4c393423b76e4373e5157ddc34803a0189ba96b21ddbb40269d31468a6f2",
    },
    "chatglm3-6b": {
        "pytorch_model-00001-of-00007.bin": "4d5567466e89625dbd10e51c69a02982f233a10108cf232a379defdbb065ae0b",
        "pytorch_model-00002-of-00007.bin": "4ad41534016ac4a2431fa2d4b08efbe28f963744135ec52b2ea13cc86730fa2a",
        "pytorch_model-00003-of-00007.bin": "a2be9b17c332a8345e787953d4879caee4747ad4b263f013aa3c4654c94c3d24",
        "pytorch_model-00004-of-00007.bin": "b5526891e1b4c8edd2e3688df5156aa107e2140fe7e3f9d0d54f9cbe3b6ee3b5",
        "pytorch_model-00005-of-00007.bin": "84bb18a476f74beaf4d941733bd1c475791eba799b228f78d0165de989cb7a40",
        "pytorch_model-00006-of-00007.bin": "1181875a2dc30fba968d72d0fc4628b9a60d3866bf680eb14b9822b5b504830f",
        "pytorch_model-00007-of-00007.bin": "1271b638dc0a88206d1c7a51bcaa862410eb56f3e59fd0068a96e96cb5e3f4f0",
        "tokenizer.model": "e7dc4c393423b76e4373e5157ddc34803a0189ba96b21ddbb40269d31468a6f2",
    },
    "codegeex2-6b": {
        "pytorch_model-00001-of-00007.bin": "39d9ea931a3cb444ad53fd33853e003d22953a5fcd34204e6df7fb61d746b748",
        "pytorch_model-00002-of-00007.bin": "7706f7420577fbe254f2f80c430084cec9c6879de5094a94a627f9d2517a5c8d",
        "pytorch_model-00003-of-00007.bin": "7bb6903f7cc06c3bd1be76a2880a56f92ae9e8c6a734380d9ce48d98f5bba958",
        "pytorch_model-00004-of-00007.bin": "1f3412c7584797d1576dc8ff55ad0d863f6c3b52d1da720a2d3a45266ebed568",
        "pytorch_model-00005-of-00007.bin": "bdfddc4596fc323ea16be00059d0e7cf255e180c1818c92138137f3c260b4c06",
        "pytorch_model-00006-of-00007.bin": "b19d2d2f1bccbca9a7f09fcd8975191e435acd5be0a557a51140dc6d8a1fffa5",
        "pytorch_model-00007-of-00007.bin": "7bde960e5c66595c46022163579938d0e0c3e37f6b006b2d1249ba85407b5e1c",
        "tokenizer.model": "57d9fdbdfaa7cd8c0a3a38d7e8de2e6c31374b5dbc4dc4568d85585fe745812f",
    },
}
"""Repository name, file name, SHA-256."""

PUBLISHED_IDS = {
    "chatglm-6b": "THUDM/chatglm-6b",
    "chatglm2-6b": "THUDM/chatglm2-6b",
    "chatglm3-6b": "THUDM/chatglm3-6b",
    "codegeex2-6b": "THUDM/codegeex2-6b",
}
"""Where these repositories are on Hugging Face."""

TOKENIZER_SIZES = {"ice_text.model": 2706249, "tokenizer.model": 1018370}
"""Bytes of the published tokenizer files: one of this length with another sum is damaged, not another tokenizer."""
