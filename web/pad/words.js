/** The pad's words in the host's language; English where there is no translation. */

import { translations } from './translations.js'

const ENGLISH = {
  pad: 'Preference pad',
  weightsOf: 'Weights of {names}',
  klScale: 'KL scale',
  opposite: 'opposite',
  exaggerated: 'exaggerated',
  base: '0 base',
  blend: '1 blend',
  kl: 'KL {value}',
  adapter: 'LoRA {number}',
  empty: 'no LoRA',
  linked: '{weight} is set by its link',
  emptySlot: '{weight} counts as 0: there is no LoRA {number}',
  switchedOff: '{weight} counts as 0: {name} is switched off',
  allZero: 'All weights are 0: click in the pad',
  muted: '{title} is muted: unmute it to run',
  noLora: 'Choose a LoRA in Load Reward LoRAs',
  reset: 'Equal weights',
  savePreset: 'Save this preference\u2026',
  presetName: 'Name of the preference',
  preset: 'Preference {number}',
  recall: 'Use {name}',
  forget: 'Delete {name}',
  runOnRelease: 'Run when I let go',
  lock: 'Lock {name}',
  takeBack: 'Remembered image: click to take its preference and seed back',
  remembered: 'Remembered images nearby, not a preview of this preference',
  forgetImages: 'Forget the images on the pad ({number})',
  rows: 'LoRAs',
  addLora: '+ Add a LoRA',
  chooseLora: 'Choose a LoRA',
  reorder: 'Drag to reorder',
  switch: 'On or off',
  strength: 'Strength: 1 as trained',
  remove: 'Remove'
}

/** @type {Record<string, typeof ENGLISH> & { en: typeof ENGLISH }} */
const WORDS = {
  en: ENGLISH,
  zh: {
    pad: '偏好面板',
    weightsOf: '{names} 的权重',
    klScale: 'KL系数',
    opposite: '相反',
    exaggerated: '夸张',
    base: '0 基础',
    blend: '1 混合',
    kl: 'KL {value}',
    adapter: 'LoRA {number}',
    empty: '无 LoRA',
    linked: '{weight} 由连线设定',
    emptySlot: '{weight} 按 0 计算：没有 LoRA {number}',
    switchedOff: '{weight} 按 0 计算：{name} 已关闭',
    allZero: '所有权重都是 0：请点击面板',
    muted: '{title} 已停用：启用后才能运行',
    noLora: '请在“加载奖励 LoRA”中选择 LoRA',
    reset: '权重均等',
    savePreset: '保存此偏好\u2026',
    presetName: '偏好名称',
    preset: '偏好 {number}',
    recall: '使用 {name}',
    forget: '删除 {name}',
    runOnRelease: '松开时运行',
    lock: '锁定 {name}',
    takeBack: '记住的图像：点击可恢复其偏好和种子',
    remembered: '附近记住的图像，并非此偏好的预览',
    forgetImages: '忘记面板上的图像（{number}）',
    rows: 'LoRA 列表',
    addLora: '+ 添加 LoRA',
    chooseLora: '选择 LoRA',
    reorder: '拖动以排序',
    switch: '开或关',
    strength: '强度：1 为训练时的强度',
    remove: '移除'
  }
}

export const { setLanguage, say } = translations(WORDS)
