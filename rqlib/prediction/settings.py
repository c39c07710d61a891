"""How the rows of a table were quantized: rows of different settings never go into one fit.

The loss in a format depends on how its scales are chosen. A setting is what `published.SETTING` names, and a forecast
holds for one setting only.
"""

from collections.abc import Mapping

from pandas import DataFrame, Series

from rqlib.prediction.published import FLOAT, NETWORK, SETTING

TODAY = {"granularity": "tensor", "ranges": "mse", "nonnegative": "unsigned", "bias": "float"}
"""The defaults of `quantization.ptq`: taken where as many networks were measured with another setting."""


def filled(rows: DataFrame) -> DataFrame:
    """The rows, with the columns of `published.SETTING` in full."""
    known = {name: rows[name].fillna(usual) if name in rows else usual for name, usual in SETTING.items()}
    return rows.assign(**known)


def setting(rows: DataFrame, *, like: DataFrame | None = None, **asked: str) -> dict[str, str]:
    """The setting that a forecast holds for: of those that the rows have and that were asked for, the most frequent.

    Most frequent means that most networks were measured with it; among equals, the one that is nearest to the defaults
    of `quantization.ptq`. It is printed, with the number of networks.

    Args:
        rows: one row per network and format.
        like: other rows that shall be used together with these, so that their setting is asked for.
        asked: granularity, ranges, nonnegative, bias; an empty text asks for nothing.

    Raises:
        ValueError: no row has what was asked for; the message says what there is.
    """
    asked = {name: value for name, value in asked.items() if value}
    if like is not None:
        of_others = filled(like[like.format != FLOAT])
        asked = {name: of_others[name].iloc[0] for name in SETTING if of_others[name].nunique() == 1} | asked
    networks = filled(rows[rows.format != FLOAT])
    names = [name for name in NETWORK if name in rows]
    networks = networks.drop_duplicates([*SETTING, *names])
    counts = networks.value_counts([*SETTING]).rename("networks").reset_index()
    wanted = counts[[all(row[name] == value for name, value in asked.items()) for _, row in counts.iterrows()]]
    if wanted.empty:
        raise ValueError(
            f"expected rows measured with {described(asked)}, got {' | '.join(map(described, _each(counts)))}; "
            "ask for one of these, or leave the parameters empty"
        )
    like_today = [sum(row[name] == value for name, value in TODAY.items()) for _, row in wanted.iterrows()]
    ordered = wanted.assign(like_today=like_today).sort_values(["networks", "like_today"], ascending=False)
    found, measured = _each(ordered)[0], len(networks[names].drop_duplicates())
    print(f"measured with {described(found)}: {ordered.networks.iloc[0]} of {measured} measured networks")
    return found


def measured_with(rows: DataFrame, setting: Mapping[str, str]) -> DataFrame:
    """The rows of one setting, and those of float networks, which belong to all; the setting stands in each.

    Of a float network that was scored beside several settings only the rows of this setting are kept.

    Raises:
        ValueError: there is none; the message says what there is.
    """
    whole = rows.format == FLOAT
    found = filled(rows)
    own = (found[list(setting)] == list(setting.values())).all(axis=1)
    if not own[~whole].any():
        there = _each(found[~whole].drop_duplicates([*SETTING]))
        raise ValueError(
            f"expected rows measured with {described(setting)}, got {' | '.join(map(described, there)) or 'none'}; "
            "measure them again with this setting, or ask for the setting they have"
        )
    names = [name for name in NETWORK if name in found]
    scored = found.loc[own & whole, names].drop_duplicates()
    twice = found[names].merge(scored, how="left", indicator=True)._merge.eq("both").to_numpy()
    return found[own | (whole & ~twice)].assign(**setting).reset_index(drop=True)


def described(setting: Mapping[str, str] | Series) -> str:
    """``ranges mse, nonnegative unsigned``"""
    return ", ".join(f"{name} {value}" for name, value in setting.items())


def _each(frame: DataFrame) -> list[dict[str, str]]:
    return frame[[*SETTING]].to_dict("records")
