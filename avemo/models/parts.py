"""The parts that systems are put together from, by name. A new part is one file and one line here."""

from collections.abc import Callable

from torch import nn

from avemo.models import fusion
from avemo.models.att_blstm_fcn import AttBLSTMFCN, AttentionAndMean
from avemo.models.attention import Last, Mean, self_attention
from avemo.models.audio import abfcn_1d, abfcn_2d
from avemo.models.cnn_lstm import CNNLSTM
from avemo.models.config import AttentionConfig, AudioEncoderConfig, VideoEncoderConfig
from avemo.models.fusion import Fusion
from avemo.models.mafn import MAFN
from avemo.models.networks import Networks
from avemo.models.tacn import FusionTACN
from avemo.models.video import VideoEncoder

# From the bins of a spectrogram, a module that takes (B, F, T) and lengths int64 (B,) and gives (B, P T', C) and
# P times its encoded frames int64 (B,). Its attribute `out_features` is C, and `positions` is P: how many places
# of the frequency axis it keeps for every frame, which follow each other.
AUDIO_ENCODERS: dict[str, Callable[[int, AudioEncoderConfig], nn.Module]] = {
    "1d_abfcn": abfcn_1d,
    "2d_abfcn": abfcn_2d,
    "cnn_lstm": CNNLSTM,
    "att_blstm_fcn": AttBLSTMFCN,
    "fusion_tacn": FusionTACN,
}

# From the side of a face, a module that takes (B, T, S, S) and lengths int64 (B,) and gives (B, T, D); D is its
# attribute `out_features`.
VIDEO_ENCODERS: dict[str, Callable[[int, VideoEncoderConfig], nn.Module]] = {
    "frames": VideoEncoder,
    "networks": Networks,
}

# From the encoder and the number of trunks, a module that takes (B, T, C) and lengths int64 (B,) and gives (B, C),
# (B, trunks, C) and the weights of the frames (B, T), or None where it has none.
ATTENTIONS: dict[str, Callable[[nn.Module, int, AttentionConfig], nn.Module]] = {
    "self": self_attention,
    "mean": Mean,
    "last": Last,
    "attention_and_mean": AttentionAndMean,
}

FUSIONS: dict[str, Fusion] = {
    "am_fbp": fusion.AM_FBP,
    "m_fbp": fusion.M_FBP,
    "ag_fbp": fusion.AG_FBP,
    "g_fbp": fusion.G_FBP,
    "encoder_concat": fusion.CONCAT,
    "mafn": MAFN,
}
